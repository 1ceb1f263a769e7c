"""Is the fork server's process: `python -m workers.host.forkserver_main FD HOST_PID cpu|cuda MODULE...`.

It imports the MODULEs once, then gives each request a process of its own and reports how that ended. It stays
single-threaded and never touches CUDA: a fork copies one thread only, and no CUDA context. Requests and replies are
JSON on a SOCK_SEQPACKET socket, one message each. A request carries three descriptors: events, output, stack dumps.

The process of the next cell is forked as soon as the last one has ended. It takes what every cell needs and waits. It
has no context, no thread and no cell until it gets a request. No other cell runs while that happens.

Nothing that the server starts outlives it. It adopts orphaned descendants and kills them with the cell's process. When
the host's end of the socket closes, because the host died, it kills them and ends. When the server itself dies, its
children get SIGKILL from the kernel.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from typing import NamedTuple, NoReturn

from workers.host import processes
from workers.host.preloaded import refuse_foreign_allocator
from workers.meters.host_memory import CELL_NAME

_MAX_REQUEST = 2**18
_NAME, _WAITING_NAME = "oomline-server", "oomline-next"


def main() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: _end(control))
    processes.set_name(_NAME)
    processes.adopt_orphans()
    processes.die_with(int(sys.argv[2]), signal.SIGTERM)
    try:
        if sys.argv[3] == "cpu":
            refuse_foreign_allocator()
        for module in sys.argv[4:]:
            importlib.import_module(module)
    except BaseException:
        control.send(json.dumps({"failed": traceback.format_exc()[-8192:]}).encode())
        sys.exit(1)
    # What is alive now stays alive in every cell. The collector need not visit it, least of all in a measured run.
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": _report()}).encode())
    while True:
        waiting = _fork(control, wake_write)
        pid = _serve_request(waiting, control, wake_write)
        _follow(pid, control, wake_read)


def _report() -> dict[str, object]:
    torch = sys.modules.get("torch")
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "cuda_initialized": bool(torch and torch.cuda.is_initialized()),
    }


class _Waiting(NamedTuple):
    pid: int
    channel: socket.socket  # takes one request


def _fork(control: socket.socket, wake_write: int) -> _Waiting:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        os.close(wake_write)
        control.close()
        ours.close()
        _become_cell(server, theirs)
    theirs.close()
    # The child does it too: whichever comes first, the group is there for what follows.
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    return _Waiting(pid, ours)


def _serve_request(waiting: _Waiting, control: socket.socket, wake_write: int) -> int:
    request, fds, _, _ = socket.recv_fds(control, _MAX_REQUEST, 3)
    if not request:
        _end(control)
    try:
        socket.send_fds(waiting.channel, [request], fds)
    except OSError:  # it died while it waited
        waiting.channel.close()
        waiting = _fork(control, wake_write)
        socket.send_fds(waiting.channel, [request], fds)
    waiting.channel.close()
    for fd in fds:
        os.close(fd)
    control.send(json.dumps({"pid": waiting.pid}).encode())
    return waiting.pid


def _follow(pid: int, control: socket.socket, wake_read: int) -> None:
    """Return when the cell's process has ended and nothing that it started is left."""
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if control.fileno() in ready:  # nothing is asked while a cell runs: the host has gone
            _end(control)
        with contextlib.suppress(BlockingIOError):
            os.read(wake_read, 4096)
        while True:
            found, status = os.waitpid(-1, os.WNOHANG)
            if found == 0:
                break
            if found == pid:
                left_over = _clear(pid)
                report = {"status": status, "left_over": left_over}
                control.send(json.dumps({"ended": report}).encode())
                return


def _clear(pid: int | None) -> int:
    """Kill what is left of a cell: its group, then every descendant that this process has adopted. Returns how many."""
    if pid is not None:
        processes.kill_group(pid)
    ended = 0
    while True:
        for child in processes.children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
            ended += 1
        except ChildProcessError:
            return ended


def _end(control: socket.socket) -> NoReturn:
    control.close()
    _clear(None)
    os._exit(0)


def _become_cell(server: int, channel: socket.socket) -> NoReturn:
    from workers.host.child.device import ChildDevice
    from workers.host.child.run import prepare, run_cell
    from workers.host.events import decode_request

    status = 1
    try:
        os.setpgid(0, 0)
        processes.die_with(server, signal.SIGKILL)
        processes.set_name(_WAITING_NAME)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            device: ChildDevice | Exception = prepare(is_cpu=sys.argv[3] == "cpu")
        except Exception as error:
            device = error
        request, fds, _, _ = socket.recv_fds(channel, _MAX_REQUEST, 3)
        if not request:
            os._exit(0)
        channel.close()
        processes.set_name(CELL_NAME)
        events_fd, output_fd, dump_fd = fds
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((null, 0), (output_fd, 1), (output_fd, 2)):
            os.dup2(fd, target)
        faulthandler.enable(file=2, all_threads=True)
        faulthandler.register(signal.SIGUSR1, file=dump_fd, all_threads=True)
        if isinstance(device, Exception):
            raise device  # it is told where the cell's output goes
        run_cell(decode_request(request), events_fd, device)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # No destructors: an interpreter that shuts down after a fault can hang; the kernel frees everything.
        os._exit(status)


if __name__ == "__main__":
    main()
