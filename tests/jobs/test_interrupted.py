"""`oomline run` interrupted: by Ctrl-C, by a terminal that closes, and by a head that dies under the driver."""

import fcntl
import os
import pty
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.journal.folder import read_run
from orchestrator.journal.journal import Journal
from tests.jobs.test_submit import free_port
from tests.workers.host.cells import gpt_neox
from workers.outcome import Outcome

MARK = "OOMLINE_INTERRUPTED"  # in the environment of every process of a test, wherever it is reparented to
PATIENCE_S = 5  # Ray's own is 60: how long a driver outlives its head


class Command:
    """`oomline run` of one sweep in one folder, to be started again and again."""

    def __init__(self, folder: Path, token: str, cells: int, *options: str, **environment: str) -> None:
        self.out, self.cells, self._token = folder / "run", cells, token
        sweep = folder / "sweep.yaml"
        model = gpt_neox(folder / "model")
        sweep.write_text(
            f"{{name: interrupted, models: [{{target: '{model}', dtype: float32}}], modes: [baseline], "
            f"lengths: [100], prompt_tokens: [8], repeats: {cells}}}"
        )
        self._words = [
            sys.executable, "-m", "jobs", "run", str(sweep), "--out", str(self.out), "--slots", "1", *options
        ]  # fmt: skip
        self._environment = os.environ | environment | {MARK: token, "OMP_NUM_THREADS": "1"}
        self.lines: list[str] = []
        self.process: subprocess.Popen[str]

    def start(self) -> None:
        """In a process group of its own, as a shell would."""
        self.lines = []
        self.process = subprocess.Popen(
            self._words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment,
            process_group=0,
        )  # fmt: skip

    def start_in_terminal(self) -> int:
        """Under a shell that leads a terminal's session. Returns the other end of the terminal."""
        master, slave = pty.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", '"$@"; :', "sh", *self._words],
            stdin=slave, stdout=slave, stderr=slave, text=True, env=self._environment,
        )  # fmt: skip
        os.close(slave)
        return master

    def read_until_ok(self, cells: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            cells -= " · ok · " in line
            if not cells:
                return
        raise AssertionError(f"ended with {self.process.wait()}: {self.text}")

    def read_to_end(self) -> int:
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait(30)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def outcomes(self) -> Counter[Outcome]:
        return Counter(attempt.outcome for attempt in Journal.open(self.out, writable=False).attempts())


def marked(token: str, *words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.environ().get(MARK) == token and all(word in line for word in words):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_gone(token: str, *words: str) -> None:
    _, alive = psutil.wait_procs(marked(token, *words), timeout=30)
    assert not alive, [(process.pid, process.cmdline()) for process in alive]


@pytest.fixture
def token() -> Iterator[str]:
    """Whatever a test leaves behind ends with it."""
    token = secrets.token_hex(8)
    yield token
    for process in marked(token):
        process.kill()


def check_stopped(command: Command) -> int:
    """Cells that ran are on record, the one that was running is cancelled. Returns the number of those that ran."""
    outcomes = command.outcomes()
    assert outcomes[Outcome.OK] >= 2
    assert outcomes[Outcome.CANCELLED] == 1
    manifest = read_run(command.out).manifest
    assert manifest is not None
    assert manifest.state == "stopped"
    return outcomes[Outcome.OK]


def check_goes_on(command: Command, *, reused: int) -> None:
    left = command.cells - reused
    assert f"{left} cell{'s' * (left != 1)} computed, {reused} reused" in command.text


def check_each_cell_once(command: Command) -> None:
    attempts = Journal.open(command.out, writable=False).attempts()
    done = [attempt.cell.cell_id for attempt in attempts if attempt.outcome is Outcome.OK]
    assert len(done) == len(set(done)) == command.cells
    assert len({(a.cell.cell_id, a.attempt) for a in attempts}) == len(attempts)


@pytest.mark.timeout(240)
def test_ctrl_c_ends_the_children_writes_the_report_and_the_same_command_goes_on(
    tmp_path: Path, token: str
) -> None:
    command = Command(tmp_path, token, 6)
    command.start()
    command.read_until_ok(2)
    assert marked(token, "workers.host.forkserver_main")
    os.killpg(command.process.pid, signal.SIGINT)  # a terminal tells the whole group
    assert command.read_to_end() == 1, command.text
    wait_gone(token)
    assert "stopped by SIGINT" in command.text
    reused = check_stopped(command)
    assert "cancelled" in (command.out / "report.md").read_text()

    command.start()
    assert command.read_to_end() == 0, command.text
    check_goes_on(command, reused=reused)
    check_each_cell_once(command)
    wait_gone(token)


@pytest.mark.timeout(240)
def test_a_closed_terminal_ends_a_run_as_sigterm_does(tmp_path: Path, token: str) -> None:
    """The shell dies of its SIGHUP, and then everything that it started gets one."""
    command = Command(tmp_path, token, 6)
    terminal = command.start_in_terminal()
    text = b""
    while text.count(b" ok ") < 2:
        text += os.read(terminal, 4096)
    [server] = marked(token, "gcs_server")
    [ray_folder] = {Path(found) for found in re.findall(r"/tmp/oom-\w+", " ".join(server.cmdline()))}
    assert ray_folder.is_dir()
    os.close(terminal)
    assert command.process.wait(30) == -signal.SIGHUP
    wait_gone(token)
    assert not ray_folder.exists()
    check_stopped(command)
    assert "stopped by SIGHUP" in (command.out / "report.md").read_text()


class Head:
    """A Ray of its own, daemons and all, at a port that it keeps."""

    def __init__(self, token: str) -> None:
        self.port, self._token = free_port(), token
        self.temp = Path(tempfile.mkdtemp(prefix="oomg-", dir="/tmp"))  # short: socket paths end at 107 bytes
        self.environment = {
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(PATIENCE_S),
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={self.port}"),
                *("--include-dashboard=false", "--disable-usage-stats", f"--dashboard-port={free_port()}"),
                *("--num-cpus=1", "--object-store-memory=80000000", f"--temp-dir={self.temp}"),
                f"--dashboard-agent-listen-port={free_port()}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
            env=os.environ | self.environment | {MARK: self._token},
        )

    def kill(self) -> None:
        """The server that all the cluster's knowledge is in; the node around it stays."""
        [server] = marked(self._token, "gcs_server")
        server.kill()
        server.wait(10)


@pytest.fixture
def head(token: str) -> Iterator[Head]:
    head = Head(token)
    head.start()
    yield head
    for process in marked(token):
        process.kill()
    shutil.rmtree(head.temp, ignore_errors=True)


@pytest.mark.timeout(300)
def test_a_driver_whose_head_died_loses_nothing_and_goes_on_at_a_new_head(
    tmp_path: Path, token: str, head: Head
) -> None:
    """Until Ray ends it, hard and without clean-up, the driver goes on and journals what comes back."""
    command = Command(tmp_path, token, 14, "--address", head.address, **head.environment)
    command.start()
    command.read_until_ok(2)
    head.kill()
    command.read_until_ok(1)
    assert command.read_to_end() != 0, command.text
    assert "report: " not in command.text
    wait_gone(token, "workers.host.forkserver_main")
    wait_gone(token, "ray::")
    known = command.outcomes()
    assert known == {Outcome.OK: command.text.count(" · ok · ")}
    assert Journal.open(command.out, writable=False).set_aside == []

    for process in marked(token):
        process.kill()
    head.start()
    command.start()
    assert command.read_to_end() == 0, command.text
    check_goes_on(command, reused=known[Outcome.OK])
    check_each_cell_once(command)
