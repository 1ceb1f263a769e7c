import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from orchestrator import axes
from orchestrator.axes import AXES
from orchestrator.journal.journal import Journal
from orchestrator.journal.record import Record
from orchestrator.tables.attempts import attempts, samples, steps
from tests.orchestrator.fake_run import CPU, demo_attempts
from workers.attempt import Attempt
from workers.outcome import Outcome

_CONTRACT = """
run_id cell_id attempt outcome phase model draft mode cache_policy decoder engine dtype attn_implementation batch_size
prompt_tokens length new_tokens repeat seed gamma repetition_penalty sinks window device_kind device_uuid node
budget_bytes started_at duration_s ttft_s tokens_per_s tpot_p50_s tpot_p95_s tpot_p99_s tokens_per_step
acceptance_rate peak_device_bytes peak_process_bytes peak_allocated_bytes peak_reserved_bytes kv_cache_bytes
predicted_peak_bytes num_alloc_retries sample_interval_p50_s sample_interval_p99_s eos_at output_sha256 prompt_sha256
first_divergence error_type error_message oom_token_index oom_requested_bytes oom_free_bytes
"""


def _table(folder: Path, found: list[Attempt]) -> pl.DataFrame:
    journal = Journal.open(folder)
    journal.append([Record("run", attempt, 99) for attempt in found])
    with journal.view() as view:
        return attempts(view)


def _only(mode: str, length: int) -> Attempt:
    return next(a for a in demo_attempts() if (a.cell.mode, a.cell.length) == (mode, length))


def test_the_columns_that_scripts_rely_on_are_there_and_every_axis_is_among_the_first(tmp_path: Path) -> None:
    table = _table(tmp_path, demo_attempts()[:2])
    assert set(_CONTRACT.split()) <= set(table.columns)
    assert table.columns[:5] == ["run_id", "cell_id", "attempt", "outcome", "phase"]
    assert set(table.columns[5 : 5 + len(AXES)]) == set(axes.names())
    assert table["started_at"][0] == datetime.fromtimestamp(1.79e9, UTC)
    assert table["predicted_peak_bytes"].to_list() == [99, 99]


def test_only_the_last_attempt_of_a_cell_on_a_kind_is_final(tmp_path: Path) -> None:
    first = dataclasses.replace(_only("baseline", 500), outcome=Outcome.INFRA_ERROR)
    second = dataclasses.replace(first, lease_id="2", attempt=2, outcome=Outcome.OK)
    nowhere = dataclasses.replace(first, lease_id="3", attempt=3, device=None)
    elsewhere = dataclasses.replace(first, lease_id="4", device=dataclasses.replace(CPU, kind="H100"))
    orphan = dataclasses.replace(_only("baseline", 1000), lease_id="5", device=None)
    table = _table(tmp_path, [first, second, nowhere, elsewhere, orphan])

    assert dict(table.select("lease_id", "final").iter_rows()) == {
        first.lease_id: False,
        "2": True,
        "3": False,
        "4": True,
        "5": True,
    }


def test_samples_and_steps_are_the_attempts_series(tmp_path: Path) -> None:
    found = demo_attempts()[:3]
    without = dataclasses.replace(found[1], samples=(), steps=())
    journal = Journal.open(tmp_path)
    journal.append([Record("run", attempt) for attempt in (found[0], without, found[2])])
    with journal.view() as view:
        long, along = samples(view.rows).collect(), steps(view.rows).collect()

    assert long.columns[:5] == ["cell_id", "attempt", "t_s", "device_used_bytes", "process_used_bytes"]
    assert along.columns[:4] == ["cell_id", "attempt", "token_index", "t_s"]
    assert along.columns[4:7] == ["allocated_bytes", "reserved_bytes", "kv_cache_bytes"]
    assert long.height == len(found[0].samples) + len(found[2].samples)
    mine = long.filter(cell_id=found[2].cell.cell_id)
    assert list(mine.select("t_s", "device_used_bytes").iter_rows()) == [
        (s.t_s, s.device_used_bytes) for s in found[2].samples
    ]
    assert along["allocated_bytes"].null_count() == along.height


def test_divergence_is_the_first_token_that_differs_from_the_twin(tmp_path: Path) -> None:
    baseline, streaming = _only("baseline", 1000), _only("streaming", 1000)
    spec = _only("streaming+spec", 1000)
    changed = list(streaming.output_ids)
    changed[700] += 1
    spec = dataclasses.replace(
        spec, output_ids=tuple(changed), measured=dataclasses.replace(spec.measured, output_sha256="other")
    )
    table = _table(tmp_path, [baseline, streaming, spec])

    columns = (
        "mode",
        "first_divergence",
        "compared_tokens",
        "first_divergence_plain",
        "compared_tokens_plain",
    )
    assert list(table.select(columns).iter_rows()) == [
        ("baseline", None, 1000, None, None),
        ("streaming", 282, 1000, None, None),
        ("streaming+spec", 282, 1000, 700, 1000),
    ]


def test_a_longer_run_is_compared_with_the_longest_baseline_there_is(tmp_path: Path) -> None:
    table = _table(tmp_path, [_only("baseline", 500), _only("baseline", 2000), _only("streaming", 8000)])
    assert table.row(2, named=True)["first_divergence"] == 282
    assert table.row(2, named=True)["compared_tokens"] == 2000


def test_another_prompt_or_penalty_is_no_twin(tmp_path: Path) -> None:
    streaming = _only("streaming", 500)
    other_prompt = dataclasses.replace(
        _only("baseline", 500), measured=dataclasses.replace(streaming.measured, prompt_sha256="b" * 64)
    )
    penalty = dataclasses.replace(
        _only("baseline", 500),
        lease_id="p",
        cell=dataclasses.replace(_only("baseline", 500).cell, repetition_penalty=1.2),
    )
    table = _table(tmp_path, [other_prompt, penalty, streaming])
    assert table["compared_tokens"].to_list()[2] is None
    assert table["first_divergence"].to_list()[2] is None


def test_with_several_sequences_the_smallest_index_counts(tmp_path: Path) -> None:
    baseline, streaming = _only("baseline", 500), _only("streaming", 500)
    two = {"batch_size": 2}
    ids = tuple(range(500)) * 2
    other = tuple(range(90)) + (7,) * 410 + tuple(range(40)) + (7,) * 460
    found = [
        dataclasses.replace(baseline, cell=dataclasses.replace(baseline.cell, **two), output_ids=ids),
        dataclasses.replace(streaming, cell=dataclasses.replace(streaming.cell, **two), output_ids=other),
    ]
    assert _table(tmp_path, found)["first_divergence"].to_list() == [None, 40]


def test_roofline_fractions_are_against_the_median_bandwidth_of_their_kind_of_device(tmp_path: Path) -> None:
    """A copy that was disturbed in one cell makes no two modes unlike."""
    measured = [(0.8, 1000.0), (0.4, 2000.0), (0.4, 2000.0)]
    found = [
        dataclasses.replace(
            attempt,
            measured=dataclasses.replace(
                attempt.measured, roofline_fraction=fraction, copy_bandwidth_bytes_per_s=bandwidth
            ),
        )
        for attempt, (fraction, bandwidth) in zip(demo_attempts(), measured, strict=False)
    ]
    unknown = dataclasses.replace(demo_attempts()[3])
    table = _table(tmp_path, [*found, unknown])
    assert table["roofline_fraction"].to_list() == [0.4, 0.4, 0.4, None]
