"""Stand-ins for the device actor: what a lease does is written in its cell's `corpus`."""

import os
import signal
import time
from typing import Any

from workers.attempt import Attempt, Device, Phase
from workers.cell import Cell, Lease, ModelRef
from workers.outcome import Outcome
from workers.progress import Progress
from workers.ranks import ALONE, Ranks


class ScriptedActor:
    """`die-1` (that of rank 1; the others sleep for ever), `sleep:S`, `while:FILE` (sleeps half a second where there is such a file), `die`, `raise`, `dirty`,
    `news` (posts progress, then sleeps a second), `grow:GIB` (takes so much).
    """

    kind = "cpu"

    def __init__(self, slot: str, cpu_total_bytes: int | None, board: Any = None) -> None:
        self._slot, self._total, self._board = slot, cpu_total_bytes, board

    def describe(self) -> Device:
        return Device(
            kind=self.kind, uuid=self._slot, node=self._slot.partition("/")[0], total_bytes=self._total or 1
        )

    def run(self, lease: Lease, ranks: Ranks = ALONE) -> Attempt:
        began = time.time()
        what, _, argument = lease.cell.corpus.partition(":")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die-1":
            if ranks.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        if what == "raise":
            raise RuntimeError("the host itself is broken")
        if what == "news":
            news = Progress(lease_id=lease.lease_id, phase=Phase.DECODE, new_tokens=7, elapsed_s=1.0)
            self._board.post.remote(self._slot, news)
            time.sleep(2.5)
        if what == "grow":
            held = []
            for _ in range(8 * int(argument)):
                held.append(b"1" * 2**27)
                time.sleep(0.1)  # the monitor looks ten times a second, and takes its time
        if what == "sleep":
            time.sleep(float(argument))
        if what == "while" and os.path.exists(argument):
            time.sleep(0.5)
        return Attempt(
            lease_id=lease.lease_id,
            cell=lease.cell,
            attempt=lease.attempt,
            outcome=Outcome.OK,
            phase=Phase.DONE,
            device=self.describe(),
            started_at=began,
            duration_s=time.time() - began,
            device_dirty="2 GiB are still held" if what == "dirty" else None,
        )


class GpuActor(ScriptedActor):
    kind = "NVIDIA H100 80GB HBM3"


class SlowActor(ScriptedActor):
    """Takes half a second to warm up; the `uuid` of its device says when that began and ended."""

    def describe(self) -> Device:
        began = time.time()
        time.sleep(0.5)
        return Device(kind="cpu", uuid=f"{began} {time.time()}", node="here", total_bytes=1)


class TwoKindsActor(ScriptedActor):
    """Every second slot is of another kind."""

    def describe(self) -> Device:
        kind = "tpu" if self._slot.endswith("1") else "cpu"
        return Device(kind=kind, uuid=self._slot, node="here", total_bytes=1)


class BrokenActor(ScriptedActor):
    def __init__(self, slot: str, cpu_total_bytes: int | None, board: Any = None) -> None:
        raise RuntimeError("no driver library")


def lease(what: str, number: int = 0, time_limit_s: float = 600.0) -> Lease:
    cell = Cell(
        model=ModelRef(target="pocket"),
        mode="baseline",
        engine="eager",
        prompt_tokens=8,
        length=100,
        repeat=number,
        corpus=what,
    )
    return Lease(
        lease_id=f"{cell.cell_id}.1.{number}",
        cell=cell,
        attempt=1,
        time_limit_s=time_limit_s,
        stall_timeout_s=60.0,
    )
