"""Which cells are marked as run on a noisy machine, and what the summary makes of them."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from orchestrator.journal.journal import Journal
from orchestrator.journal.record import Record
from orchestrator.tables.attempts import attempts
from orchestrator.tables.summary import summary
from tests.orchestrator.fake_run import demo_attempts, demo_spec
from workers.attempt import Attempt
from workers.machine_state import MachineState


def _attempts(folder: Path, *changed: Attempt) -> pl.DataFrame:
    """A quiet run of nine cells behind the `changed` ones."""
    quiet = [_with(a) for a in demo_attempts(demo_spec(repeats=3, lengths=[500, 1000, 2000]))[9:18]]
    journal = Journal.open(folder)
    journal.append([Record("run", attempt) for attempt in [*changed, *quiet]])
    with journal.view() as view:
        return attempts(view)


def _with(attempt: Attempt, rulers: dict[str, float] | None = None, **machine: object) -> Attempt:
    known = {"copy_bandwidth_bytes_per_s": 1e10, "copy_bandwidth_after_bytes_per_s": 1.01e10}
    return dataclasses.replace(
        attempt,
        measured=dataclasses.replace(attempt.measured, **(known | (rulers or {}))),
        machine=MachineState(**({"host_cores": 4, "host_other_load": 0.1, "cpu_wait_pct": 0.5} | machine)),
    )


FIRST = demo_attempts()[0]


@pytest.mark.parametrize(
    ("noisy", "words"),
    [
        (_with(FIRST, {"copy_bandwidth_bytes_per_s": 0.8e10}), "copy -10.0 %"),
        (_with(FIRST, cpu_wait_pct=30.0), "waited for a core 30.0 %"),
        (_with(FIRST, host_steal_pct=7.0), "stolen by the hypervisor 7.0 %"),
        (_with(FIRST, host_other_load=1.0), "others used 1.0 cores"),
        (
            _with(FIRST, throttle_reasons="sw_power_cap", throttled_pct=60.0),
            "throttled (sw_power_cap)",
        ),
    ],
)
def test_a_cell_is_marked_with_its_reason_and_the_quiet_ones_are_not(
    tmp_path: Path, noisy: Attempt, words: str
) -> None:
    table = _attempts(tmp_path, noisy)
    assert table.filter("noisy")["cell_id"].to_list() == [noisy.cell.cell_id]
    assert table.filter("noisy")["noise_reasons"].to_list() == [words]
    assert table.filter(~pl.col("noisy")).height == 9


@pytest.mark.parametrize(("slower", "noisy"), [(0.94, False), (0.88, True)])
def test_a_copy_by_a_cpu_has_a_wider_limit_than_one_by_a_card(
    tmp_path: Path, slower: float, noisy: bool
) -> None:
    copies = dict.fromkeys(
        ("copy_bandwidth_bytes_per_s", "copy_bandwidth_after_bytes_per_s"), 1.005e10 * slower
    )
    on_a_cpu = _attempts(tmp_path, _with(FIRST, copies | {"matmul_flops_per_s": 1e11}))
    assert on_a_cpu.filter(cell_id=FIRST.cell.cell_id)["noisy"].to_list() == [noisy]
    on_a_card = _attempts(tmp_path / "card", _with(FIRST, copies))
    assert on_a_card.filter(cell_id=FIRST.cell.cell_id)["noisy"].to_list() == [True]


def test_where_nothing_was_measured_nothing_is_said(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append([Record("run", FIRST)])
    with journal.view() as view:
        (row,) = attempts(view).iter_rows(named=True)
    assert (row["noisy"], row["noise_reasons"], row["ruler_deviation_pct"]) == (None, None, None)


def test_the_interval_of_a_noisy_row_is_wider_by_its_noise(tmp_path: Path) -> None:
    three = [a for a in demo_attempts(demo_spec(repeats=3, lengths=[500])) if a.cell.mode == "baseline"]
    quiet = summary(_attempts(tmp_path / "quiet", *map(_with, three)).lazy()).collect()
    noisy = summary(
        _attempts(tmp_path / "noisy", *(_with(a, cpu_wait_pct=20.0) for a in three)).lazy()
    ).collect()
    (was,), (now,) = (
        table.filter(mode="baseline", length=500).iter_rows(named=True) for table in (quiet, noisy)
    )
    assert (was["noisy"], now["noisy"], now["n_noisy"], now["noise_pct_max"]) == (False, True, 3, 20.0)
    mean = (now["tokens_per_s_ci_low"] + now["tokens_per_s_ci_high"]) / 2
    widened = now["tokens_per_s_ci_high"] - was["tokens_per_s_ci_high"]
    assert widened == pytest.approx(0.2 * mean)
