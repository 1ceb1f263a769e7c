"""A run folder that version 0.1 wrote is resumed, reported and compared as before.

`tests/data/run-0.1` is a real run of the pocket model on a CPU, with the attempts gathered in two journal parts.
"""

import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.boundary.question import questions
from orchestrator.journal.folder import open_run, read_run
from orchestrator.plan import expand
from orchestrator.report import compare, render
from orchestrator.spec import read_spec
from orchestrator.status import read_status
from orchestrator.sweep.work.estimates import Predictions
from tests.orchestrator.sweep.simulated import simulate

LANDED = Path(__file__).parents[1] / "data" / "run-0.1"
#: Of `boundaries`: what is measured. Predictions may get better.
_MEASURED = (
    *("model", "draft", "mode", "engine", "device_kind", "budget_bytes", "batch_size", "phase", "last_ok"),
    *("first_oom", "resolution", "confirmed_ok", "confirmed_oom", "censored", "bytes_per_token", "probes"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LANDED, tmp_path / "run-0.1"))


def test_a_landed_run_resumes_and_computes_nothing_again(folder: Path) -> None:
    spec = read_spec(folder / "spec.yaml")
    with open_run(folder, spec) as run:
        assert run.resumed
        history = run.journal.attempts()
        (device,) = {attempt.device for attempt in history}
        assert device is not None
        resumed = simulate(
            spec,
            expand(spec),
            [device],
            history=history,
            questions=questions(spec),
            estimates=Predictions(),  # type: ignore[arg-type]
        )
    assert resumed.fleet.leases == []
    summary = resumed.sweep.summary()
    assert (summary.computed, summary.reused, summary.left) == (0, 34, 0)


def test_cells_keep_their_ids(folder: Path) -> None:
    with read_run(folder).journal.view() as view:
        stored = view.light["cell_id"].to_list()
        assert [attempt.cell.cell_id for attempt in view.history()] == stored


def test_a_landed_run_is_told_as_finished(folder: Path) -> None:
    status = read_status(str(folder))
    assert (status.state, status.completed, status.planned, status.probes) == ("finished", 16, 16, 18)


def test_the_tables_of_a_landed_run_come_out_as_they_were(folder: Path) -> None:
    landed = {
        name: pl.read_parquet(LANDED / "tables" / f"{name}.parquet") for name in ("attempts", "summary")
    }
    render(folder)
    for name, before in landed.items():
        after = pl.read_parquet(folder / "tables" / f"{name}.parquet")
        assert_frame_equal(after.select(before.columns), before)
    before = pl.read_parquet(LANDED / "tables" / "boundaries.parquet").select(_MEASURED)
    after = pl.read_parquet(folder / "tables" / "boundaries.parquet").select(_MEASURED)
    assert_frame_equal(after, before, check_row_order=False)


def test_a_landed_run_is_reported(folder: Path) -> None:
    render(folder)
    text = (folder / "report.md").read_text()
    assert text.startswith("# Where memory ends: run-0.1\n\nfinished: 16 of 16 cells.")
    assert "baseline runs out of memory after 1,920 tokens (first failure at 2,048" in text


def test_a_landed_run_is_compared_cell_by_cell(folder: Path) -> None:
    text = compare([LANDED, folder])
    assert "Nothing in common" not in text
    lines = [line for line in text.splitlines() if line.startswith("| pocket")]
    assert len(lines) == 4 + 2 * 8
    assert all("yes" not in line for line in lines)
