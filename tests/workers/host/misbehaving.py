"""An engine that misbehaves as it is told. The fork server of a test preloads this module instead of an option.

What to do is in `ModelRef.draft` of a mode without a draft: `FAULT@PHASE`, at the first new token for decode. `FAULT@PHASE@RANK`:
only the process of that rank.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from workers.attempt import InEffect, Phase
from workers.cell import Cell
from workers.engines import ENGINES
from workers.engines.session import Generated, Recorder
from workers.host.child import run as child
from workers.models.load import LoadedModel, load_model

ENGINES["graph"] = __name__


class Unspeakable(Exception):
    """Neither pickles nor says what it is."""

    def __init__(self) -> None:
        self.callback = lambda: None

    def __reduce__(self) -> str:
        raise TypeError("no")

    def __str__(self) -> str:
        raise ValueError("no words")


def spin() -> None:
    while True:
        pass


def spin_in_c() -> None:
    """Holds the GIL for ever."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def flood() -> None:
    line = b"x" * 1023 + b"\n"
    for _ in range(64 * 1024):
        os.write(1, line)
    os.write(1, b"the last line\n")


def leave_grandchildren() -> None:
    """One in another session, one stopped; both would outlive their parent."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)", f"left by {os.getppid()}"]
    subprocess.Popen(sleep, start_new_session=True)
    os.kill(subprocess.Popen(sleep).pid, signal.SIGSTOP)


def leave_grandchildren_and_stop() -> None:
    leave_grandchildren()
    os.kill(os.getpid(), signal.SIGSTOP)


def babble() -> None:
    """Writes to descriptors that are not its own."""
    for fd in range(3, 64):
        try:
            os.write(fd, b'["Finished", {}]\n\xff\xfe not json\n["Entered"]\n')
        except OSError:
            continue


def take(megabytes: int) -> list[torch.Tensor]:
    return [torch.empty(2**20, dtype=torch.uint8) for _ in range(megabytes)]


def hoard() -> None:
    held = [block.fill_(1) for block in take(512)]
    time.sleep(600)
    del held


def raw_cuda() -> None:
    """Device memory that torch's allocator knows nothing of: 4 GiB."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtime = ctypes.CDLL(next(line.split()[-1] for line in maps if "libcudart" in line))
    for _ in range(16):
        runtime.cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(2**28))
        time.sleep(0.1)
    time.sleep(600)


def device_assert() -> None:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()


def sleep() -> None:
    time.sleep(600)


def say(message: str) -> None:
    raise RuntimeError(message)


def unspeakable() -> None:
    raise Unspeakable


FAULTS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda: os._exit(3),
    "sys-exit": lambda: sys.exit(4),
    "spin": spin,
    "spin-in-c": spin_in_c,
    "sleep": sleep,
    "hoard": hoard,
    "raw-cuda": raw_cuda,
    "device-assert": device_assert,
    "flood": flood,
    "grandchildren": leave_grandchildren,
    "grandchildren-and-stop": leave_grandchildren_and_stop,
    "babble": babble,
    "unspeakable": unspeakable,
    "illegal-access": lambda: say("CUDA error: an illegal memory access was encountered"),
    "bug": lambda: say("shape mismatch"),
    "too-much": lambda: take(4096),
}


def misbehave(ref_draft: str | None, where: str) -> None:
    fault, phase, rank = ((ref_draft or "") + "@@").split("@")[:3]
    if phase == where and rank in ("", str(_rank())):
        FAULTS[fault]()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


class MisbehavingSession:
    """One new token a millisecond, on which all processes of the cell agree; fault `short` leaves out the last, `hold-N` keeps N MiB more with each token."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def in_effect(self) -> InEffect:
        dtype = "float64" if self._cell.model.draft == "other-dtype" else self._cell.model.dtype
        return InEffect(cache_class="None", attn_implementation="none", dtype=dtype, repetition_penalty=1.0)

    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        misbehave(self._cell.model.draft, "prepare")

    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        what = self._cell.model.draft or ""
        misbehave(what, "prefill")
        if what == "short":
            new_tokens -= 1
        held: list[torch.Tensor] = []
        recorder.count_cache_with(lambda: sum(t.nbytes for t in held))
        for produced in range(1, new_tokens + 1):
            if distributed.is_initialized():
                distributed.all_reduce(torch.ones(64))
            recorder.tokens(produced)
            if produced == 1:
                recorder.phase(Phase.DECODE)
                misbehave(what, "decode")
            if what.startswith("hold-"):
                held += take(int(what.removeprefix("hold-")))
            time.sleep(0.001)
        return Generated(torch.zeros(prompt_BT.shape[0], new_tokens, dtype=torch.int64), eos_at=None)


def open_session(cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> MisbehavingSession:
    misbehave(cell.model.draft, "open")
    return MisbehavingSession(cell)


def load_and_misbehave(name: str, ref: object, device: torch.device, *rest: object) -> LoadedModel:
    misbehave(ref.draft, "load")  # type: ignore[attr-defined]
    return load_model(name, ref, device, *rest)  # type: ignore[arg-type]


child.load_model = load_and_misbehave
_REFUSE = child.refuse_by_config
#: This engine runs whatever it is told to.
child.refuse_by_config = lambda cell: None if cell.engine == "graph" else _REFUSE(cell)
