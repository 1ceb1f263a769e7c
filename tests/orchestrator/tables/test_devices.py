"""Cells on several devices in the tables and in the report: each device's peaks, and what several bring."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.report import render
from orchestrator.tables.write import Tables, write_tables
from tests.orchestrator.fake_run import attempt_of, demo_attempts, demo_spec
from workers.attempt import Attempt
from workers.outcome import Outcome
from workers.ranks_attempt import attempt_of_ranks

MiB = 2**20
SPEC = demo_spec(modes=["baseline"], lengths=[500, 1000, 4000], devices_per_cell=[1, 2])


def on_two(attempt: Attempt) -> Attempt:
    """Each of two devices holds half; the second one holds 1 MiB more, and runs out first."""
    assert attempt.device is not None
    shares = []
    for rank in (0, 1):
        share = replace(
            attempt,
            device=replace(attempt.device, uuid=f"cpu-{rank}-of-2"),
            duration_s=attempt.duration_s - rank / 10,
            peak_device_bytes=(attempt.peak_device_bytes or 0) // 2 + rank * MiB,
            measured=replace(attempt.measured, tokens_per_s=1.6 * (attempt.measured.tokens_per_s or 0)),
        )
        shares.append(share)
    return attempt_of_ranks(shares)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices") / "run"
    attempts = [one if one.cell.devices == 1 else on_two(one) for one in demo_attempts(SPEC)]
    with open_run(folder, SPEC) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> Iterator[Tables]:
    with write_tables(read_run(folder)) as tables:
        yield tables


def test_each_device_of_a_cell_on_several_has_its_row(folder: Path, tables: Tables) -> None:
    devices = pl.read_parquet(folder / "tables" / "devices.parquet")
    attempts = tables.attempts
    assert devices.height == 2 * attempts.filter(devices_per_cell=2).height
    assert set(devices["cell_id"]) == set(attempts.filter(devices_per_cell=2)["cell_id"])
    assert sorted(set(devices.select("rank", "device_uuid").rows())) == [(0, "cpu-0-of-2"), (1, "cpu-1-of-2")]
    fullest = devices.group_by("cell_id").agg(pl.col("peak_device_bytes").max()).sort("cell_id")
    of_cells = attempts.filter(devices_per_cell=2).select("cell_id", "peak_device_bytes").sort("cell_id")
    assert fullest.equals(of_cells)


def test_the_device_that_ran_out_first_is_named(folder: Path, tables: Tables) -> None:
    (ended,) = tables.attempts.filter(devices_per_cell=2, length=4000).rows(named=True)
    assert (ended["outcome"], ended["device_uuid"]) == (Outcome.OOM_DECODE, "cpu-1-of-2")
    assert ended["error_message"].startswith("rank 1 of 2, cpu-1-of-2: ")
    devices = pl.read_parquet(folder / "tables" / "devices.parquet").filter(cell_id=ended["cell_id"])
    assert devices.sort("rank")["ended_cell"].to_list() == [False, True]


def test_efficiency_is_speed_for_each_device_against_one(tables: Tables) -> None:
    rows = tables.summary.filter(length=1000).sort("devices_per_cell")
    one, two = rows["tokens_per_s_median"]
    assert rows["scaling_efficiency"].to_list() == pytest.approx([1.0, two / one / 2])


def test_the_report_says_what_several_devices_bring(folder: Path) -> None:
    text = Path(render(folder)).read_text()
    section = text.split("## What several devices bring")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| baseline")]
    assert [line.split(" | ")[1] for line in lines] == ["1", "2"]
    assert all(" | 1,000 | " in line for line in lines), "the longest length that passed on both"


def test_a_run_on_single_devices_says_nothing_of_it(tmp_path: Path) -> None:
    spec = demo_spec(modes=["baseline"], lengths=[500])
    with open_run(tmp_path / "run", spec) as run:
        run.journal.append([Record(run.run_id, attempt_of(one.cell, 1)) for one in demo_attempts(spec)])
    assert "several devices" not in Path(render(tmp_path / "run")).read_text()
