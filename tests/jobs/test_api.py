"""`import oomline`: what a notebook does with it."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import polars as pl
import pytest

import oomline
from jobs.api.run_json import run_schema
from oomline import events
from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from tests.docs.repository import ROOT
from tests.jobs.simulated_run import simulated_run
from tests.orchestrator.fake_run import CPU, demo_attempts, demo_spec

TINY = {
    "name": "tiny",
    "models": ["random:pythia-14m"],
    "modes": "streaming",
    "lengths": 8,
    "prompt_tokens": 8,
    "streaming": {"sinks": 2, "window": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that is finished, without a report."""
    spec = demo_spec(lengths=[500, 4000])
    out = tmp_path_factory.mktemp("run")
    with open_run(out, spec) as run:
        run.plan(8)
        run.devices([CPU])
        run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
        run.finish("finished")
    return str(out)


def test_importing_it_loads_neither_ray_nor_torch() -> None:
    code = "import oomline, sys; print([m for m in ('ray', 'torch', 'altair') if m in sys.modules], oomline.__version__)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'jobs/api'}"},
    )
    assert ran.stdout == f"[] {oomline.__version__}\n", ran.stderr


def test_a_run_folder_gives_frames_of_its_journal(folder: str) -> None:
    run = oomline.open_run(folder)
    assert run.spec == demo_spec(lengths=[500, 4000])
    assert run.attempts.height == 8
    assert run.summary.filter(mode="streaming", length=4000)["outcome"].to_list() == ["ok"]
    assert run.boundaries.filter(mode="baseline").select("last_ok", "first_oom").row(0) == (500, 4000)
    assert run.devices.select("device_uuid", "attempts").rows() == [("cpu-0-of-2", 8)]
    for frame in (run.samples, run.steps):
        assert isinstance(frame, pl.LazyFrame)
        assert frame.select(pl.col("cell_id").n_unique()).collect().item() == 8
    assert run.quality.is_empty()
    assert run.retrieval.is_empty()
    assert run.exit_status is None
    assert run.status.state == "finished"
    assert not (Path(folder) / "tables").exists()


def test_the_answer_is_that_of_the_report(folder: str) -> None:
    run = oomline.open_run(folder)
    assert "Use streaming" in " ".join(run.answer.sentences)
    page = run.report()
    assert page == (Path(folder) / "report.html").as_uri()
    assert run.answer == run.status.answer
    (Path(folder) / "answer.json").unlink()


def test_a_run_as_json_follows_the_published_schema(folder: str) -> None:
    published = json.loads((ROOT / "docs/run.schema.json").read_text())
    assert published == run_schema(), "write it again: oomline schema --run > docs/run.schema.json"
    told = json.loads(oomline.open_run(folder).to_json())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(told, published)
    assert told["cells"] == {"planned": 8, "completed": 8, "probes": 0}
    assert told["boundaries"][0]["mode"] == "baseline"
    assert set(told["summary"][0]) == set(published["properties"]["summary"]["items"]["properties"])


def test_a_dictionary_runs_with_its_events_in_any_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.run.run_sweep", simulated_run())
    seen: list[oomline.SweepEvent] = []
    runs: list[oomline.Run] = []
    thread = threading.Thread(
        target=lambda: runs.append(oomline.run(TINY, out=tmp_path / "run", on_event=seen.append))
    )
    thread.start()
    thread.join()
    assert runs[0].exit_status == 0
    assert runs[0].attempts["outcome"].to_list() == ["ok"]
    assert (tmp_path / "run/report.html").exists()
    finished = [event.attempt.outcome for event in seen if isinstance(event, events.CellFinished)]
    assert finished == ["ok"]
    assert capsys.readouterr().out == ""


def test_an_event_handler_that_fails_ends_the_events_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run.run_sweep", simulated_run())
    calls: list[oomline.SweepEvent] = []

    def fail(event: oomline.SweepEvent) -> None:
        calls.append(event)
        raise RuntimeError("mine")

    assert oomline.run(TINY, tmp_path / "run", fail).exit_status == 0
    assert len(calls) == 1


def test_a_ray_of_the_caller_is_joined_and_left(ray_driver: str, tmp_path: Path) -> None:
    """From a thread beside the main one, as a server would."""
    import ray

    kept = ray.put("mine")
    errors: list[BaseException] = []

    def sweep() -> None:
        try:
            run = oomline.run(TINY, out=tmp_path / "run")
            assert run.attempts["outcome"].to_list() == ["ok"]
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    assert errors == []
    assert ray.is_initialized()
    assert ray.get(kept) == "mine"
    with pytest.raises(
        oomline.SpecError, match=r"this process is connected to Ray at .*leave the address out"
    ):
        oomline.run({**TINY, "name": "other"}, out=tmp_path / "other", address="10.0.0.1:6379")


def test_a_sweep_is_stopped_from_another_thread(ray_driver: str, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    run = oomline.run(TINY, out=tmp_path / "run", stop=stop)
    assert run.exit_status == 1
    assert run.status.state == "stopped"
    assert "stopped by its caller" in run.status.note


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda tmp: oomline.load_spec({"name": "x", "modles": []}), "modles"),
        (lambda tmp: oomline.load_spec("dmeo"), "nearest is 'demo'"),
        (lambda tmp: oomline.load_spec(demo_spec(), ["repeats=2"]), "change the dictionary"),
        (lambda tmp: oomline.open_run(tmp), "no run folder"),
        (lambda tmp: oomline.run(TINY, out=tmp / "run", retry=["okay"]), "okay"),
        (lambda tmp: oomline.fit("random:pythia-14m", 3), "16 new tokens"),
    ],
)
def test_what_is_wrong_is_one_error(call: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(oomline.SpecError, match=words):
        call(tmp_path)  # type: ignore[operator]


def test_plan_and_fit_are_frames() -> None:
    plan = oomline.plan(TINY, device="cpu")
    assert plan.cells == plan.predictions.height == 1
    assert plan.predictions["predicted_boundary"].to_list() == [None]
    assert json.loads(plan.to_json())["cells"] == 1
    found = oomline.fit("random:pythia-14m", cards=["8GiB"], modes=["baseline"])
    assert found.fits.height == 1
    assert found.fits["longest_length"].item() > 1000
    parts = found.fits.select(pl.sum_horizontal(pl.col("^part_.*_bytes$"))).item()
    assert parts == found.fits["peak_bytes"].item() == json.loads(found.to_json())["fits"][0]["peak_bytes"]
