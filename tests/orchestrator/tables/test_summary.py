import dataclasses
import statistics
from pathlib import Path

import polars as pl
import pytest

from orchestrator.journal.journal import Journal
from orchestrator.journal.record import Record
from orchestrator.report.speculation_costs import speculated
from orchestrator.tables.attempts import attempts
from orchestrator.tables.quality import quality, quality_boundaries
from orchestrator.tables.summary import summary
from tests.orchestrator.fake_run import demo_attempts, demo_spec
from workers.attempt import Attempt
from workers.outcome import Outcome


def _summary(folder: Path, found: list[Attempt]) -> pl.DataFrame:
    journal = Journal.open(folder)
    journal.append([Record("run", attempt) for attempt in found])
    with journal.view() as view:
        return summary(attempts(view).lazy()).collect()


def _with_speed(original: Attempt, speed: float | None, **changes: object) -> Attempt:
    measured = dataclasses.replace(original.measured, tokens_per_s=speed)
    return dataclasses.replace(original, measured=measured, **changes)


def test_medians_interval_and_speedup(tmp_path: Path) -> None:
    cells = demo_attempts(demo_spec(repeats=3, lengths=[500], modes=["baseline", "streaming"]))
    speeds = {"baseline": [10.0, 11.0, 15.0], "streaming": [20.0, 22.0, 21.0]}
    found = [_with_speed(a, speeds[a.cell.mode][a.cell.repeat]) for a in cells]
    rows = {row["mode"]: row for row in _summary(tmp_path, found).iter_rows(named=True)}

    base = rows["baseline"]
    assert (base["n"], base["tokens_per_s_median"], base["outcome"]) == (3, 11.0, "ok")
    half = 4.303 * statistics.stdev(speeds["baseline"]) / 3**0.5
    assert base["tokens_per_s_ci_low"] == pytest.approx(12 - half)
    assert base["tokens_per_s_ci_high"] == pytest.approx(12 + half)
    assert rows["streaming"]["speedup"] == pytest.approx(21 / 11)
    assert base["speedup"] == 1.0


def test_the_contract_columns_come_first(tmp_path: Path) -> None:
    contract = (
        "model mode engine device_kind budget_bytes prompt_tokens batch_size length n tokens_per_s_median"
    )
    assert _summary(tmp_path, demo_attempts()).columns[:10] == contract.split()


def test_where_the_baseline_ran_out_of_memory_there_is_no_speedup(tmp_path: Path) -> None:
    rows = _summary(tmp_path, demo_attempts()).filter(length=8000)
    by_mode = {row["mode"]: row for row in rows.iter_rows(named=True)}
    assert by_mode["baseline"]["outcome"] == "oom_decode"
    assert by_mode["baseline"]["tokens_per_s_median"] is None
    assert by_mode["streaming"]["speedup"] is None
    assert by_mode["streaming"]["tokens_per_s_ci_low"] is None, "one repeat has no interval"
    assert by_mode["baseline"]["oom_token_index_min"] is not None


def test_probes_retries_and_other_penalties_do_not_mix(tmp_path: Path) -> None:
    first = demo_attempts()[0]
    failed = _with_speed(first, 1.0, lease_id="f", outcome=Outcome.INFRA_ERROR)
    again = _with_speed(first, 5.0, lease_id="a", attempt=2)
    probe = _with_speed(first, 900.0, lease_id="p", cell=dataclasses.replace(first.cell, purpose="probe"))
    penalty = _with_speed(
        first, 7.0, lease_id="r", cell=dataclasses.replace(first.cell, repetition_penalty=1.2)
    )
    rows = _summary(tmp_path, [failed, again, probe, penalty])
    assert sorted(rows.select("repetition_penalty", "n", "tokens_per_s_median").iter_rows()) == [
        (1.0, 1, 5.0),
        (1.2, 1, 7.0),
    ]


def test_a_mixed_outcome_is_not_ok(tmp_path: Path) -> None:
    cells = demo_attempts(demo_spec(repeats=3, lengths=[500], modes=["baseline"]))
    found = [cells[0], dataclasses.replace(cells[1], outcome=Outcome.TIMEOUT), cells[2]]
    row = _summary(tmp_path, found).row(0, named=True)
    assert (row["n"], row["n_ok"], row["outcome"]) == (3, 2, "timeout")


def test_speculation_is_told_by_its_own_times(tmp_path: Path) -> None:
    found = {
        item.row["mode"]: item for item in speculated(_summary(tmp_path, demo_attempts()).filter(length=500))
    }
    item = found["baseline+spec"]
    plain = 1 / item.row["tokens_per_s_median"] * item.speedup
    assert item.draft_cost == pytest.approx(0.0011 / plain)
    assert item.round_cost == pytest.approx(2.9 / item.speedup)
    assert sum(item.break_even**k for k in range(5)) == pytest.approx(item.round_cost)


def test_a_round_that_costs_more_than_it_can_yield_never_pays(tmp_path: Path) -> None:
    found = [
        _with_speed(a, 10.0 if a.cell.mode_spec.decoder.verifies else 100.0)
        for a in demo_attempts(demo_spec(lengths=[500], modes=["baseline", "baseline+spec"]))
    ]
    (item,) = speculated(_summary(tmp_path, found))
    assert item.round_cost == pytest.approx(29)
    assert item.break_even is None


def _quality(folder: Path, found: list[Attempt]) -> pl.DataFrame:
    journal = Journal.open(folder)
    journal.append([Record("run", attempt) for attempt in found])
    with journal.view() as view:
        return quality(view.rows).collect()


def test_quality_takes_the_longest_run_of_each_mode(tmp_path: Path) -> None:
    spec = demo_spec(workload="score", modes=["baseline", "streaming", "window"], lengths=[1000, 8000])
    table = _quality(tmp_path, demo_attempts(spec))

    assert table.columns[:7] == [
        "model",
        "mode",
        "engine",
        "position_start",
        "position_end",
        "nll_mean",
        "num_tokens",
    ]
    assert table.filter(mode="baseline")["num_tokens"].sum() == 8000
    first = table.filter(mode="baseline").row(0, named=True)
    attempt = next(a for a in demo_attempts(spec) if a.cell.mode == "baseline")
    assert first["nll_mean"] == pytest.approx(attempt.results[0].nll_sum / attempt.results[0].num_tokens)


def test_the_third_boundary(tmp_path: Path) -> None:
    spec = demo_spec(workload="score", modes=["baseline", "streaming", "window"], lengths=[8000])
    found = {row.mode: row for row in quality_boundaries(_quality(tmp_path, demo_attempts(spec)))}

    assert found["streaming"].departs_at is None
    assert found["baseline"].departs_at is not None
    assert 512 <= found["baseline"].departs_at < 1500
    assert found["window"].beyond > 2 * found["window"].in_context
    assert found["window"].departs_at == 256
    assert found["baseline"].scored_to == 8000


def test_a_text_that_ends_inside_a_bucket_is_scored_to_its_end(tmp_path: Path) -> None:
    attempts = demo_attempts(demo_spec(workload="score", modes=["streaming"], lengths=[8000]))
    *whole, last = attempts[0].results
    cut = dataclasses.replace(last, position_end=last.position_start + 256)
    found = quality_boundaries(_quality(tmp_path, [dataclasses.replace(attempts[0], results=(*whole, cut))]))
    assert [row.scored_to for row in found] == [8000]
