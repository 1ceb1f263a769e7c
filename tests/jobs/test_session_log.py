"""What a job's log shows is kept in the run folder, a file for each session; of a failed one with the traceback."""

from pathlib import Path

import pytest

from jobs import run as command
from orchestrator.journal.folder import read_run
from orchestrator.journal.store import LocalStore
from orchestrator.watch import Notice
from orchestrator.watch.session_log import SessionLog
from tests.jobs.simulated_run import simulated_run
from tests.orchestrator.sweep.simulated import spec

SWEEP = spec(modes=["baseline"], lengths=[1000])


def run(out: Path) -> int:
    return command.run_command(SWEEP, str(out), address=None, cpu_slots=None)


def log_of(out: Path, session: int) -> str:
    return (out / f"logs/session-{session}.txt").read_text()


def test_each_session_leaves_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_sweep", simulated_run())
    assert run(tmp_path) == 0
    assert run(tmp_path) == 0
    first, second = log_of(tmp_path, 1), log_of(tmp_path, 2)
    assert " baseline 64+1000 #0 · ok · " in first
    assert "1 cell computed, 0 reused" in first
    assert "0 cells computed, 1 reused" in second
    assert f"report: {tmp_path}/report.md" in second


def test_a_session_that_failed_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(command, "run_sweep", fail)
    with pytest.raises(RuntimeError):
        run(tmp_path)
    assert "RuntimeError: nobody thought of this" in log_of(tmp_path, 1).splitlines()


def test_interrupted_twice_is_one_line_and_a_stopped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_sweep", interrupt)
    assert run(tmp_path) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"oomline: stopped; no report: `oomline report {tmp_path}` writes it, the same command goes on"
    ]
    manifest = read_run(tmp_path).manifest
    assert manifest is not None
    assert (manifest.state, manifest.sessions[-1].note) == (
        "stopped",
        "interrupted twice: what ran then has no outcome",
    )
    assert log_of(tmp_path, 1).endswith("interrupted\n")


def test_a_log_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    for text in ("one", "two"):
        log = SessionLog(LocalStore(tmp_path), 1)
        log.see(Notice(text))
        log.close()
        log.say("later")
        log.close()
    assert [text.split()[1::2] for text in (log_of(tmp_path, 1), log_of(tmp_path, 2))] == [
        ["one", "later"],
        ["two", "later"],
    ]
