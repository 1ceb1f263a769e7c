"""Linux process control that Python does not offer: death signals, sub-reapers, names, states."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def die_with(parent: int, number: signal.Signals) -> None:
    """Send ourselves `number` when the *thread* that created us ends. Ends now when `parent` is gone already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parent dies become our children, wherever they moved their session or group."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """At most 15 bytes; shows in /proc/PID/comm and in `top`."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()))


def kill_group(pid: int) -> None:
    """SIGKILL the process group that `pid` leads; also ends stopped processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Children of `pid`'s main thread, zombies included."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    """One letter as in `ps`: R running, S sleeping, D waiting for a device, T stopped, Z dead. "?" when gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "?"


def _prctl(option: int, value: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
