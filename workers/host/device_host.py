"""Owns one device: runs one lease at a time in a fresh process, and returns what came of it.

It never creates a CUDA context and holds no state of a cell, so a cell can take down only its own process.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from workers.attempt import Attempt, Device, Failure, Phase
from workers.cell import Lease
from workers.engines.families import FAMILIES
from workers.host import processes
from workers.host.build_attempt import build_attempt
from workers.host.devices import DeviceDirty, open_slot
from workers.host.events import Request, encode_request
from workers.host.evidence import StackDump
from workers.host.forkserver import ForkServer, ForkServerError
from workers.host.peer_hosts import PeerHosts
from workers.host.supervisor import Supervisor
from workers.meters.host_memory import kernel_oom_kills, limit_below_ray
from workers.meters.sampler import Sampler
from workers.meters.state_sampler import StateSampler
from workers.modes import implementations
from workers.outcome import Outcome
from workers.progress import Progress
from workers.ranks import ALONE, Ranks

#: What every cell needs, imported once. The last one runs the cell.
PRELOAD = (
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    *(family.modeling for family in FAMILIES.values()),
    "workers.host.child.warm_imports",
    "workers.text.corpus",
    "workers.engines.eager",
    "workers.engines.graph",
    *implementations(),
    "workers.host.child.run",
)


def _unheard(progress: Progress) -> None: ...


class DeviceHost:
    """Use from one thread. `cpu_total_bytes`: this slot's share of memory; None = the first visible card.

    `threads`: torch's threads per cell. `preload`: modules that the fork server imports. When the memory of the
    machine (or the container) is nearly as full as Ray's monitor lets it be, the largest cell on it is ended.
    Raises `NoDevice`, `DeviceDirty`.
    """

    def __init__(
        self,
        slot: str,
        cpu_total_bytes: int | None = None,
        *,
        threads: int = 1,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        self._slot = open_slot(slot, cpu_total_bytes)
        self._threads = threads
        self._preload = preload
        self._dirty: str | None = None
        self._lingering: int | None = None
        self._server = self._start_server()
        self._sampler = Sampler(self._slot.meter)
        self._state = StateSampler(self._slot.state_meter)

    def describe(self) -> Device:
        """Return the device, once it can take a lease. Raises `ForkServerError`, `DeviceDirty`."""
        self._refuse_if_dirty()
        self._server.wait_ready()
        return self._slot.device

    def run(
        self, lease: Lease, report: Callable[[Progress], None] = _unheard, ranks: Ranks = ALONE
    ) -> Attempt:
        """Run the lease. Returns when the cell's process is gone and the device is clean, or known not to be
        (`device_dirty`).

        `report` is called about once a second. `ranks`: which of the processes of a cell on several devices this host
        runs; the other hosts run theirs meanwhile, and when one process ends badly all are ended. Raises `DeviceDirty`
        when the device is not clean to begin with.
        """
        with PeerHosts(ranks) as peers:
            self._refuse_if_dirty()
            attempt = self._run_clean(lease, report, ranks, peers)
            peers.tell_ended(attempt.outcome)
        self._dirty = self._what_is_left()
        return replace(attempt, device_dirty=self._dirty)

    def _run_clean(
        self, lease: Lease, report: Callable[[Progress], None], ranks: Ranks, peers: PeerHosts
    ) -> Attempt:
        received_s, started_at = time.monotonic(), time.time()
        try:
            self._revive_server()
            return self._run_child(lease, report, ranks, peers, received_s, started_at)
        except ForkServerError as error:
            self._server.close()
            return Attempt(
                lease_id=lease.lease_id,
                cell=lease.cell,
                attempt=lease.attempt,
                outcome=Outcome.INFRA_ERROR,
                phase=Phase.SPAWN,
                device=self._slot.device,
                started_at=started_at,
                duration_s=time.monotonic() - received_s,
                failure=Failure(error_type="ForkServerError", error_message=str(error)),
            )

    def close(self) -> None:
        """End the fork server and whatever runs under it."""
        self._server.close()
        self._sampler.close()
        self._state.close()
        self._slot.leave()

    def _start_server(self) -> ForkServer:
        return ForkServer(self._preload, is_cpu=self._slot.is_cpu, environ=self._slot.environ)

    def _revive_server(self) -> None:
        if not self._server.is_alive():
            self._server.close()
            self._server = self._start_server()
        self._server.wait_ready()

    def _refuse_if_dirty(self) -> None:
        if self._dirty is not None:
            self._dirty = self._what_is_left()
        if self._dirty is not None:
            raise DeviceDirty(self._dirty)

    def _what_is_left(self) -> str | None:
        if self._lingering is not None and processes.state(self._lingering) not in "Z?":
            return f"process {self._lingering} survives SIGKILL"
        return self._slot.what_is_left()

    def _run_child(
        self,
        lease: Lease,
        report: Callable[[Progress], None],
        ranks: Ranks,
        peers: PeerHosts,
        received_s: float,
        started_at: float,
    ) -> Attempt:
        kills_before = kernel_oom_kills()
        self._sampler.begin()
        started_s = time.monotonic()
        dump = StackDump()
        try:
            with closing(_Pipe()) as events, closing(_Pipe()) as output:
                pid = self._server.spawn(
                    self._request(lease, ranks, started_s), events.write, output.write, dump.fd
                )
                events.close_write()
                output.close_write()
                self._slot.follow(pid)
                self._state.begin(pid)
                supervisor = Supervisor(
                    lease,
                    self._slot,
                    self._sampler,
                    self._state,
                    self._server,
                    pid,
                    started_s,
                    limit_below_ray(os.environ),
                    report,
                    peers,
                )
                seen = supervisor.until_ended(events.read, output.read, dump)
                self._state.mark(Phase.DONE)
        finally:
            self._slot.leave()
            dump.close()
        self._lingering = pid if seen.lingers else None
        if seen.lingers:
            self._server.close()
        seen.kernel_oom_kill = kernel_oom_kills() > kills_before
        return build_attempt(
            lease, self._slot, seen, self._sampler, self._state, received_s=received_s, started_at=started_at
        )

    def _request(self, lease: Lease, ranks: Ranks, started_s: float) -> bytes:
        device = self._slot.device
        return encode_request(
            Request(
                lease=lease,
                total_bytes=device.total_bytes,
                reserve_bytes=device.reserve_bytes,
                idle_bytes=self._slot.idle_bytes,
                threads=self._threads,
                started_s=started_s,
                ranks=ranks,
            )
        )


class _Pipe:
    """`read` does not block."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read, False)
        self._open = [self.read, self.write]

    def close_write(self) -> None:
        self._open.remove(self.write)
        os.close(self.write)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())
