"""What happens to the processes below when those above die."""

import os
import subprocess
import sys
import time

import psutil

from tests.workers.host.cells import lease
from workers.outcome import Outcome
from workers.progress import Progress

_HOST = """
import sys
from tests.workers.host.cells import lease
from tests.workers.host.conftest import WITH_FAULTS
from workers.host.device_host import DeviceHost
host = DeviceHost("orphans/cpu0", 2**30, preload=WITH_FAULTS)
host.describe()
host.run(lease(sys.argv[1], fault=sys.argv[2], stall_timeout_s=600))
"""


#: Two devices that run one cell, each from a thread of its own, as its actor would.
_PAIR = """
import os, sys, threading
from tests.workers.host.cells import lease
from tests.workers.host.conftest import WITH_FAULTS
from workers.host.device_host import DeviceHost
from workers.ranks import Ranks
shared = lease(sys.argv[1], fault=sys.argv[2], devices=2, stall_timeout_s=600)
ready = threading.Barrier(2)
def run(rank):
    host = DeviceHost(f"orphans/cpu{rank}", 2**30, preload=WITH_FAULTS)
    host.describe()
    ready.wait()
    host.run(shared, ranks=Ranks(rank, 2, f"orphans-{os.getpid()}"))
other = threading.Thread(target=run, args=(1,))
other.start()
run(0)
"""


def until(condition, limit_s: float = 120.0):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nothing_outlives_a_killed_host(model):
    """A cell on two devices: one process is stopped, with a grandchild in another session and one that is stopped. The other
    process waits for it."""
    host = subprocess.Popen([sys.executable, "-c", _PAIR, model, "grandchildren-and-stop@decode@0"])
    try:
        # two fork servers, two processes of the cell, two grandchildren
        family = until(lambda: len(found := descendants(host.pid)) == 6 and found)
        until(lambda: sum(process.status() == psutil.STATUS_STOPPED for process in family) == 2)
        assert {os.getsid(process.pid) for process in family} != {os.getsid(0)}
    finally:
        host.kill()
        host.wait()
    until(lambda: all(map(gone, family)), 10)


def test_what_waits_for_a_cell_ends_with_its_host():
    script = _HOST.partition("host.run(")[0] + "input()"
    host = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        until(lambda: "oomline-next" in [process.name() for process in descendants(host.pid)])
        family = descendants(host.pid)
    finally:
        host.kill()
        host.communicate()
    until(lambda: all(map(gone, family)), 10)


def fork_server() -> psutil.Process:
    """The host's own, among whatever else this process has started (a Ray head, say)."""
    (server,) = (p for p in psutil.Process().children() if "workers.host.forkserver_main" in p.cmdline())
    return server


def test_leftovers_of_a_cell_end_with_it(host, model):
    host.describe()
    server = fork_server()
    attempt = host.run(lease(model, fault="grandchildren@decode"))
    assert attempt.outcome is Outcome.OK
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if f"left by {server.pid}" in (p.info["cmdline"] or ())
    ]


def test_dead_fork_server_is_replaced(host, model):
    host.describe()
    server = fork_server()
    reports = []

    def kill_server(progress: Progress) -> None:
        reports.append(progress)
        server.kill()

    attempt = host.run(lease(model, fault="sleep@decode"), kill_server)
    assert attempt.outcome is Outcome.INFRA_ERROR
    assert attempt.device_dirty is None
    assert reports[0].new_tokens == 1
    assert host.run(lease(model, fault="none")).outcome is Outcome.OK
    replacement = fork_server()
    assert replacement.pid != server.pid


def test_a_process_that_dies_while_it_waits_for_its_cell_is_replaced(host, model):
    host.describe()
    (waiting,) = until(lambda: fork_server().children())
    waiting.kill()
    until(lambda: gone(waiting))
    assert host.run(lease(model)).outcome is Outcome.OK
