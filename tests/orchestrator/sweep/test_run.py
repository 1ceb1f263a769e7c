"""A whole sweep on a real Ray with real device hosts: to its end, stopped, killed, resumed. No process is left over."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.journal.journal import Journal
from tests.workers.host.cells import gpt_neox
from workers.outcome import Outcome

CELLS = 8


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "spec.json"
    path.write_text(
        json.dumps(
            {
                "name": "killed",
                "models": [{"target": gpt_neox(folder / "model"), "dtype": "float32"}],
                "modes": ["baseline", "streaming"],
                "lengths": [24, 32],
                "prompt_tokens": [8],
                "streaming": {"sinks": 2, "window": 8},
                "repeats": CELLS // 4,
            }
        )
    )
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


class StoppableDriver:
    """Takes seconds to import what it needs; works from `begin` on."""

    def __init__(self, out: Path, spec_file: Path, address: str) -> None:
        command = [sys.executable, "-m", "tests.orchestrator.sweep.driver", str(out), str(spec_file), address]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # for `communicate`

    def read_until(self, text: str, times: int) -> None:
        assert self.process.stdout is not None
        seen = 0
        for line in self.process.stdout:
            self.lines.append(line)
            seen += text in line
            if seen == times:
                return
        raise AssertionError(f"ended with {self.process.wait()}: {''.join(self.lines)}")


def family() -> list[psutil.Process]:
    """The device actors, their fork servers and the cells, wherever they live under this session's Ray."""
    servers = [
        p
        for p in psutil.Process().children(recursive=True)
        if "workers.host.forkserver_main" in " ".join(p.cmdline())
    ]
    return [
        process
        for server in servers
        for process in (server.parent(), server, *server.children(recursive=True))
    ]


def gone(processes: list[psutil.Process]) -> None:
    assert len(processes) >= 2
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, [(process.pid, process.cmdline()) for process in alive]


def outcomes(out: Path) -> Counter[Outcome]:
    return Counter(attempt.outcome for attempt in Journal.open(out, writable=False).attempts())


@pytest.fixture
def drivers(ray_head: str, spec_file: Path, out: Path) -> Iterator[list[StoppableDriver]]:
    """The next ones import while the one before works."""
    made = [StoppableDriver(out, spec_file, ray_head) for _ in range(3)]
    yield made
    for driver in made:
        driver.process.kill()
        driver.process.wait()


@pytest.mark.timeout(300)
def test_a_sweep_that_is_stopped_and_killed_goes_on_and_loses_nothing(
    drivers: list[StoppableDriver], out: Path
) -> None:
    first, second, third = drivers
    first.begin()
    first.read_until(" · ok · ", 3)
    processes = family()
    asked = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(timeout=30) == 1
    assert time.monotonic() - asked < 20
    gone(processes)
    after_stop = outcomes(out)
    assert after_stop[Outcome.OK] >= 3
    assert after_stop[Outcome.CANCELLED] == 1

    second.begin()
    second.read_until(" · ok · ", 2)
    processes = family()
    second.process.kill()
    second.process.wait()
    gone(processes)
    after_kill = outcomes(out)
    assert after_kill[Outcome.OK] >= after_stop[Outcome.OK] + 2

    third.begin()
    text, _ = third.process.communicate(timeout=200)
    assert third.process.returncode == 0, text
    assert f"{after_kill[Outcome.OK]} outcomes on record are reused" in text
    left = CELLS - after_kill[Outcome.OK]
    assert f"{left} cell{'s' * (left != 1)} computed, {after_kill[Outcome.OK]} reused" in text
    attempts = Journal.open(out, writable=False).attempts()
    finished = [attempt.cell.cell_id for attempt in attempts if attempt.outcome is Outcome.OK]
    assert len(finished) == len(set(finished)) == CELLS
    assert len({(a.cell.cell_id, a.attempt) for a in attempts}) == len(attempts)
