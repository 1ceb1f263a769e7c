"""The answer where people are: in `status`, in its JSON, and at once from a finished sweep, without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.finished import answered_before
from orchestrator.answer import read_answer
from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.report import render
from orchestrator.spec import SweepSpec
from orchestrator.status import read_status
from tests.orchestrator.fake_run import CPU, demo_attempts, demo_spec
from workers.meters.nvml import NoDevice


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> list[str]:
        raise NoDevice("none")

    monkeypatch.setattr("jobs.finished.list_uuids", none_here)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def _finished(folder: Path, spec: SweepSpec, left_out: int = 0, state: str = "finished") -> str:
    attempts = demo_attempts(spec)
    with open_run(folder, spec) as run:
        run.plan(len(attempts))
        run.devices([CPU])
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts[left_out:]])
        run.finish(state)
    render(folder)
    return str(folder)


def test_a_finished_sweep_answers_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = demo_spec(lengths=[500, 4000])
    assert answered_before(spec, _finished(tmp_path, spec), None)
    said = capsys.readouterr().out
    assert said.startswith("0 cells computed, 8 reused (6 ok, 2 oom_decode)")
    assert "(500, 4,000]" in said
    assert "Use streaming" in said
    assert f"page: {(tmp_path / 'report.html').as_uri()}" in said


@pytest.mark.parametrize(
    "why", ["a cell is left", "it was stopped", "another sweep", "a cluster", "no folder"]
)
def test_what_is_not_finished_here_is_left_to_the_sweep(tmp_path: Path, why: str) -> None:
    spec = demo_spec(lengths=[500])
    out = _finished(
        tmp_path / "run",
        spec,
        int(why == "a cell is left"),
        "stopped" if why == "it was stopped" else "finished",
    )
    asked = demo_spec(lengths=[500, 4000]) if why == "another sweep" else spec
    address = "10.0.0.1:6379" if why == "a cluster" else None
    folder = str(tmp_path / "nowhere") if why == "no folder" else out
    assert not answered_before(asked, folder, address)


def test_a_card_that_has_come_since_is_no_finished_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = demo_spec(lengths=[500])
    out = _finished(tmp_path, spec)
    monkeypatch.setattr("jobs.finished.list_uuids", lambda: ["GPU-new"])
    assert not answered_before(spec, out, None)


def test_status_has_the_answer_of_the_last_report(tmp_path: Path) -> None:
    out = _finished(tmp_path, demo_spec(lengths=[500]))
    answer = read_answer(read_run(out).store)
    assert answer is not None
    assert answer.lines[0].mode == "baseline"
    told = json.loads(read_status(out).to_json())["answer"]
    assert told["sentences"] == list(answer.sentences)
    (tmp_path / "answer.json").unlink()
    assert read_status(out).answer is None


def test_a_finished_sweep_needs_neither_ray_nor_torch() -> None:
    code = (
        "import jobs.finished, sys; print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
