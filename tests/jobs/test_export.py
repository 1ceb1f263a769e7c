"""`oomline export`: what other tools read."""

import json
import re
import resource
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from jobs import export
from jobs.api.sweeps import open_run as open_run_to_read
from jobs.export import export_run
from orchestrator.journal.errors import StoreError
from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.spec_error import SpecError
from tests.orchestrator.fake_run import demo_attempts, demo_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = demo_spec(lengths=[500, 4000])
    out = tmp_path_factory.mktemp("run")
    with open_run(out, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
    return str(out)


def test_csv_holds_every_table_with_rows(folder: str, tmp_path: Path) -> None:
    written = export_run(folder, tmp_path, "csv")
    assert [path.name for path in written] == [
        *("attempts.csv", "summary.csv", "boundaries.csv", "devices.csv", "samples.csv", "steps.csv")
    ]
    attempts = pl.read_csv(tmp_path / "attempts.csv")
    assert attempts["outcome"].value_counts(sort=True).rows() == [("ok", 6), ("oom_decode", 2)]
    assert attempts.filter(outcome="oom_decode")["tokens_per_s"].null_count() == 2
    assert pl.read_csv(tmp_path / "steps.csv")["cell_id"].n_unique() == 8


def test_json_lines_hold_the_same(folder: str, tmp_path: Path) -> None:
    export_run(folder, tmp_path, "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "boundaries.jsonl").read_text().splitlines()]
    ends = {row["mode"]: (row["last_ok"], row["first_oom"]) for row in rows}
    assert ends["baseline"] == (500, 4000)
    assert ends["streaming"] == (4000, None)


def test_mlflow_finds_a_run_for_each_cell(folder: str, tmp_path: Path) -> None:
    """Checked with mlflow's own FileStore: it searches these runs by metric and reads their history."""
    runs = export_run(folder, tmp_path, "mlflow")
    assert len(runs) == 8
    experiment = yaml.safe_load((tmp_path / "1/meta.yaml").read_text())
    assert experiment["name"] == "demo"
    for run in runs:
        about = yaml.safe_load((run / "meta.yaml").read_text())
        assert about["run_id"] == run.name
        assert about["status"] == 3
        assert (run / "params/mode").read_text() in {
            "baseline",
            "baseline+spec",
            "streaming",
            "streaming+spec",
        }
        when, value, step = (run / "metrics/peak_device_bytes").read_text().split()
        assert int(when) == about["end_time"]
        assert int(value) > 0
        assert step == "0"
        assert len((run / "metrics/step_kv_cache_bytes").read_text().splitlines()) > 10


@pytest.mark.parametrize(
    ("form", "occupied", "words"), [("xlsx", False, "there are csv"), ("csv", True, "not an empty folder")]
)
def test_what_cannot_be_exported_is_one_line(
    folder: str, tmp_path: Path, form: str, occupied: bool, words: str
) -> None:
    if occupied:
        (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=words):
        export_run(folder, tmp_path, form)


@pytest.mark.parametrize("form", ["csv", "jsonl", "mlflow"])
def test_a_folder_that_takes_no_more_is_named_with_the_reason(folder: str, tmp_path: Path, form: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(SpecError, match=re.escape(f"--out {tmp_path}: File too large")):
            export_run(folder, tmp_path, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ["csv", "jsonl", "mlflow"])
def test_a_journal_that_cannot_be_read_is_not_the_fault_of_the_target(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(folder, moved)
    run = open_run_to_read(moved)
    assert run.attempts.height
    shutil.rmtree(moved / "journal")
    monkeypatch.setattr(export, "open_run", lambda folder: run)
    with pytest.raises(StoreError, match="journal cannot be read"):
        export_run(str(moved), tmp_path / "out", form)
