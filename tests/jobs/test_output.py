"""What cannot be printed costs no cell: the sweep runs to its end, and the report is written."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.errors import MarkupError

from jobs.output import NeverFails
from orchestrator.journal.journal import Journal
from orchestrator.watch import Notice, SweepEvent, Watcher
from orchestrator.watch.live import LiveWatcher
from orchestrator.watch.plain import PlainWatcher
from workers.outcome import Outcome

CELLS = 4
SWEEP = f"""
name: printed
models: [{{target: "random:pythia-14m", dtype: float32}}]
modes: [baseline]
lengths: [16]
repeats: {CELLS}
"""
Start = Callable[[list[str]], subprocess.Popen[bytes]]


def ascii_only(words: list[str]) -> subprocess.Popen[bytes]:
    """Every line of a finished cell has a `·`."""
    return _start(words, PYTHONIOENCODING="ascii")


def reader_gone(words: list[str]) -> subprocess.Popen[bytes]:
    """As `| head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = _start(words, stdout=writer)
    os.close(writer)
    return process


def closed(words: list[str]) -> subprocess.Popen[bytes]:
    """As `>&- 2>&- <&-`: the first files that are opened would be written into."""
    return subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], env=_environment())


WAYS = [ascii_only, reader_gone, closed]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[Start, tuple[Path, int, str, str]]:
    """All at the same time, as most of it is the time to import."""
    running = {}
    for way in WAYS:
        folder = tmp_path_factory.mktemp(way.__name__)
        sweep = folder / "sweep.yaml"
        sweep.write_text(SWEEP)
        module = [sys.executable, "-m", "tests.jobs.simulated_command"]
        running[way] = folder / "run", way([*module, "run", str(sweep), "--out", str(folder / "run")])
    results = {}
    for way, (out, process) in running.items():
        said, complained = process.communicate(timeout=150)
        results[way] = out, process.returncode, (said or b"").decode(), (complained or b"").decode()
    return results


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_printed_costs_no_cell(
    ended: dict[Start, tuple[Path, int, str, str]], way: Start
) -> None:
    out, status, said, complained = ended[way]
    assert status == 0, complained
    assert "Traceback" not in complained
    assert "Exception ignored" not in complained
    attempts = Journal.open(out, writable=False).attempts()
    assert [attempt.outcome for attempt in attempts] == [Outcome.OK] * CELLS
    assert (out / "report.html").exists()
    if way is ascii_only:
        assert said.count(" ? ok ? ") == CELLS
        assert "report: " in said
    elif way is reader_gone:
        assert complained.count("the sweep goes on") == 1


def full_disk() -> Watcher:
    return PlainWatcher(open("/dev/full", "w"))


def terminal_gone() -> Watcher:
    ours, theirs = pty.openpty()
    display = LiveWatcher(Console(file=open(theirs, "w"), force_terminal=True))  # noqa: SIM115
    os.close(ours)
    return display


@pytest.mark.parametrize("display", [full_disk, terminal_gone])
def test_a_stream_that_takes_no_more_ends_the_display_alone(
    display: Callable[[], Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    watcher = NeverFails(display())
    for _ in range(3):
        watcher.see(Notice("so it is"))
    watcher.close()
    assert caplog.text.count("; the sweep goes on") == 1


def test_a_display_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        seen = 0

        def see(self, event: SweepEvent) -> None:
            self.seen += 1
            raise MarkupError("closing tag '[/]' doesn't match any open tag")

        def close(self) -> None:
            raise AssertionError("it is out of the game")

    broken = Broken()
    display = NeverFails(broken)
    for _ in range(3):
        display.see(Notice("so it is"))
    display.close()
    assert broken.seen == 1
    assert caplog.text.count("progress is shown no more (MarkupError: closing tag") == 1


@pytest.mark.parametrize(
    ("redirected", "status", "complaint"),
    [
        (
            "plan SWEEP --json > /dev/full",
            1,
            "oomline: its output cannot be written: [Errno 28] No space left on device\n",
        ),
        (
            "plan SWEEP > /dev/full",
            1,
            "oomline: its output cannot be written: [Errno 28] No space left on device\n",
        ),
        ("plan SWEEP --json 2> /dev/full", 0, ""),
        ("plan nosuch.yaml 2> /dev/full", 2, ""),
    ],
)
def test_a_command_whose_output_cannot_be_written_says_so_in_one_line(
    tmp_path: Path, redirected: str, status: int, complaint: str
) -> None:
    """The note on the corpus goes to stderr."""
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"{SWEEP}corpus: {tmp_path / 'text.jsonl'}\n")
    command = f"{sys.executable} -m jobs {redirected}".replace("SWEEP", str(sweep))
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=_environment(), timeout=150, check=False
    )
    complained = [line for line in done.stderr.splitlines(keepends=True) if "note: corpus" not in line]
    assert (done.returncode, "".join(complained)) == (status, complaint)


def _environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": ""} | variables


def _start(words: list[str], stdout: object = subprocess.PIPE, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdout=stdout,  # type: ignore[arg-type]
        stderr=subprocess.PIPE,
        env=_environment(**variables),
    )
