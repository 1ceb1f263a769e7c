"""Keeps what a process leaves behind: the end of its output, and its stacks before it is ended."""

import os
import shutil
import signal
import subprocess
import sys
import time

from workers.host import processes

_OUTPUT_BYTES = 16 * 2**10
_DUMP_BYTES = 32 * 2**10
_DUMP_WAIT_S = 1.0
_PY_SPY_LIMIT_S = 5.0


class LastOutput:
    """Keeps the last bytes that a process printed."""

    def __init__(self, limit: int = _OUTPUT_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()

    def add(self, chunk: bytes) -> None:
        self._kept += chunk
        del self._kept[: -self._limit]

    def text(self) -> str:
        return self._kept.decode(errors="replace")


class StackDump:
    """A file in memory, to which a child's faulthandler writes on SIGUSR1, even while a thread never releases the GIL."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("stacks")

    def take(self, pid: int) -> str | None:
        """Return the process's state and every thread's stack. py-spy, where installed, reads them of a process that
        does not answer."""
        state = processes.state(pid)
        dump = self._ask(pid) if state not in "TD" else ""
        if not dump:
            dump = _py_spy(pid)
        return f"process state {state}\n{dump}".strip()

    def close(self) -> None:
        os.close(self.fd)

    def _ask(self, pid: int) -> str:
        os.ftruncate(self.fd, 0)
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            return ""
        deadline = time.monotonic() + _DUMP_WAIT_S
        size = -1
        # The dump is whole once it has stopped growing.
        while time.monotonic() < deadline and (size <= 0 or size != os.fstat(self.fd).st_size):
            size = os.fstat(self.fd).st_size
            time.sleep(0.05)
        return os.pread(self.fd, _DUMP_BYTES, 0).decode(errors="replace")


def _py_spy(pid: int) -> str:
    """Does not pause the process, which may be stopped already."""
    beside_us = os.path.dirname(sys.executable)  # a virtual environment may not be on PATH
    found = shutil.which("py-spy", path=os.pathsep.join([beside_us, os.environ.get("PATH", os.defpath)]))
    if found is None:
        return ""
    try:
        result = subprocess.run(
            [found, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=_PY_SPY_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return (result.stdout or result.stderr)[-_DUMP_BYTES:]
