"""Starts the fork server and speaks to it: a warm process that forks one process for each cell.

`multiprocessing.forkserver` does not serve here. It imports the parent's `__main__` again (Ray's worker script), gives
no death signal, no process group and no captured output, and turns a wait status into an exit code.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import workers
from workers.cause import cause_first
from workers.host.preloaded import without_allocators

_ROOT = str(Path(workers.__file__).resolve().parent.parent)
_START_LIMIT_S = 300.0  # importing torch from a cold disk
_REPLY_LIMIT_S = 30.0


class ForkServerError(Exception):
    """The fork server does not start, does not answer, or has died."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`status`: as wait(2) gives it. `left_over`: how many processes the cell had left behind. They have been ended."""

    status: int
    left_over: int


class ForkServer:
    """Starts at once and warms up in the background; `wait_ready` waits for that. Use it from one thread, which must
    outlive it: the kernel ends the server when that thread ends.

    `preload`: modules to import before the first fork. `is_cpu`: what to prepare the cells' processes for.
    `environ`: variables in addition to this process's.
    """

    def __init__(
        self, preload: Sequence[str], *, is_cpu: bool, environ: Mapping[str, str] | None = None
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = ours
        self._ready = False
        command = [sys.executable, "-m", "workers.host.forkserver_main"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid()), "cpu" if is_cpu else "cuda", *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment(environ or {}),
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, limit_s: float = _START_LIMIT_S) -> None:
        """Wait until the server can fork. Raises `ForkServerError` when a module cannot be imported, starts threads or
        touches CUDA."""
        if self._ready:
            return
        reply = self._reply(limit_s)
        if "failed" in reply:
            raise ForkServerError(f"fork server does not start: {cause_first(reply['failed'])}")
        report = reply["ready"]
        if report["threads"] != 1 or report["cuda_initialized"]:
            self.close()
            raise ForkServerError(f"a preloaded module made forking unsafe: {report}")
        self._ready = True

    def spawn(self, request: bytes, events_fd: int, output_fd: int, dump_fd: int) -> int:
        """Give `request` to a process of its own. Returns its pid, which is its process group's too."""
        self.wait_ready()
        try:
            socket.send_fds(self.control, [request], [events_fd, output_fd, dump_fd])
        except OSError as error:
            raise ForkServerError(f"fork server: {error}") from error
        return int(self._reply(_REPLY_LIMIT_S)["pid"])

    def ended(self) -> Ended:
        """Return how the process ended. Call when `control` is readable."""
        return Ended(**self._reply(0.0)["ended"])

    def close(self) -> None:
        """End the server and whatever it started, within about a second."""
        self.control.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _reply(self, limit_s: float) -> dict:
        deadline = time.monotonic() + limit_s
        ready, _, _ = select.select([self.control], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ForkServerError(f"fork server did not answer within {limit_s:.0f} s")
        try:
            message = self.control.recv(65536)
        except OSError as error:
            raise ForkServerError(f"fork server: {error}") from error
        if not message:
            self._process.wait()
            raise ForkServerError(f"fork server died, status {self._process.returncode}")
        return json.loads(message)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's variables, with those that keep a preloaded library from starting threads or touching CUDA
    before the fork."""
    environ = without_allocators(os.environ)
    paths = [_ROOT, *filter(None, [environ.get("PYTHONPATH")])]
    tunables = [*filter(None, [environ.get("GLIBC_TUNABLES")]), "glibc.malloc.hugetlb=1"]
    return {
        **environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # the folder of the sweep file may hold modules with the names of ours
        "PYTHONHASHSEED": "0",  # what a cell inherits, and so what it has to take itself, alike in every server
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_STACKSIZE": "1M",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # jemalloc's would start a thread
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "GLIBC_TUNABLES": ":".join(tunables),
        **extra,
    }
