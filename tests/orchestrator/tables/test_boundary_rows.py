"""The boundaries table's content from plain attempts."""

import dataclasses
import random

import pytest

from orchestrator.boundary.question import Question, questions
from orchestrator.plan import expand
from orchestrator.predict.shape import shape_for
from orchestrator.spec import SweepSpec
from orchestrator.tables.boundary_rows import BoundaryRow, boundaries
from tests.orchestrator.boundary import searching
from tests.orchestrator.boundary.attempts import CPU, attempt_of
from workers.attempt import Attempt, Device
from workers.cell import Cell, ModelRef
from workers.outcome import Outcome

NAME = "random:pythia-14m"
PER_TOKEN = 6 * 2 * 128 * 4  # layers x (K, V) x hidden x float32
SHAPE = shape_for(NAME, ModelRef(target=NAME))


def spec(**fields: object) -> SweepSpec:
    raw = {
        "name": "t",
        "models": [{"target": NAME, "dtype": "float32"}],
        "modes": ["baseline", "streaming"],
        "budgets": ["128MiB"],
        "lengths": [1000, 8000, 16000],
        **fields,
    }
    return SweepSpec.model_validate(raw)


def run(cell: Cell, threshold: int, device: Device = CPU) -> Attempt:
    """Full caches end after `threshold` new tokens, whatever their prompt; a long prompt in chunks ends like them."""
    bounded = not cell.mode_spec.policy.grows
    if cell.prefill_chunk is not None and cell.prompt_tokens + cell.length - 64 > threshold:
        kv = (64 + threshold) * PER_TOKEN
        return attempt_of(cell, Outcome.OOM_PREFILL, kv_cache_bytes=kv, device=device)
    produced = cell.length if bounded else min(cell.length, threshold)
    kv = (517 if bounded else cell.prompt_tokens + produced) * PER_TOKEN
    if bounded or cell.length <= threshold:
        return attempt_of(cell, Outcome.OK, kv_cache_bytes=kv, device=device)
    return attempt_of(cell, Outcome.OOM_DECODE, index=threshold, kv_cache_bytes=kv, device=device)


def search(question: Question, threshold: int, device: Device = CPU) -> list[Attempt]:
    return searching.search(question, device, lambda cell: run(cell, threshold, device))


def by_mode(rows: list[BoundaryRow]) -> dict[str, BoundaryRow]:
    assert len(rows) == len({row.mode for row in rows})
    return {row.mode: row for row in rows}


def test_a_searched_question_gives_its_bracket_prediction_error_and_growth() -> None:
    asked = spec(boundary={"resolution": 64, "max_length": 20_000})
    attempts = [attempt for question in questions(asked) for attempt in search(question, 10_100)]
    random.Random(0).shuffle(attempts)
    rows = by_mode(boundaries(asked, attempts))
    baseline, streaming = rows["baseline"], rows["streaming"]
    assert (baseline.last_ok, baseline.first_oom, baseline.resolution) == (10_048, 10_112, 64)
    assert (baseline.confirmed_ok, baseline.confirmed_oom, baseline.censored) == (2, 2, False)
    assert baseline.predicted is not None
    assert baseline.error_pct == pytest.approx((baseline.predicted - 10_112) / 10_112 * 100)
    assert baseline.bytes_per_token == PER_TOKEN == baseline.analytic_bytes_per_token
    assert baseline.searched
    assert baseline.probes == 6
    assert (streaming.last_ok, streaming.first_oom, streaming.censored) == (20_000, None, True)
    assert (streaming.predicted, streaming.error_pct) == (None, None)
    assert (streaming.bytes_per_token, streaming.analytic_bytes_per_token) == (0, 0)


def test_what_synthetic_probes_held_is_not_what_a_run_holds_at_its_end() -> None:
    """Their bracket neither, while no real run has confirmed it."""
    boundary = {"resolution": 64, "max_length": 20_000, "reach": "synthetic"}
    asked = spec(modes=["baseline"], engines=["graph"], boundary=boundary)
    (question,) = questions(asked)

    def held(cell: Cell) -> Attempt:
        attempt = run(cell, 10_100)
        if attempt.failure is None:
            return attempt
        sizes = {"oom_allocated_bytes": 1000, "oom_reserved_bytes": 5000 if cell.synthetic else 1200}
        return dataclasses.replace(attempt, failure=dataclasses.replace(attempt.failure, **sizes))

    attempts = searching.search(question, CPU, held)
    scouts = [attempt for attempt in attempts if attempt.cell.synthetic]
    (row,) = boundaries(asked, attempts)
    assert (row.last_ok, row.first_oom, row.fragmentation_bytes) == (10_048, 10_112, 200)
    (row,) = boundaries(asked, scouts)
    assert (row.is_open, row.last_ok, row.first_oom, row.fragmentation_bytes) == (True, None, None, None)


def test_a_bracket_found_by_a_prompt_stands_beside_the_run_that_went_token_by_token() -> None:
    asked = spec(modes=["baseline"], boundary={"resolution": 64, "max_length": 20_000, "reach": "prefill"})
    (question,) = questions(asked)
    measured = [run(cell, 10_300) for cell in expand(asked)]
    (row,) = boundaries(asked, [*search(question, 10_100), *measured])
    assert (row.last_ok, row.first_oom, row.first_oom_index) == (10_048, 10_112, 10_300)


def test_a_search_under_way_is_as_far_as_its_runs_came() -> None:
    """Only values that were run are ends of a bracket, whatever a failed run says of itself."""
    asked = spec(modes=["baseline"], boundary={"resolution": 64, "max_length": 20_000})
    attempts = search(questions(asked)[0], 10_100)
    (row,) = boundaries(asked, attempts[:2])
    assert (row.last_ok, row.first_oom) == tuple(attempt.cell.length for attempt in attempts[:2])
    assert (row.confirmed_ok, row.confirmed_oom) == (1, 1)
    (row,) = boundaries(asked, attempts[:1])
    assert row.last_ok == attempts[0].cell.length


def test_the_long_prompt_of_a_device_is_found_again() -> None:
    asked = spec(
        modes=["baseline"],
        boundary={"resolution": 64, "max_length": 20_000, "phases": ["decode_after_prefill"]},
    )
    attempts = search(questions(asked)[0], 5_000)
    (row,) = boundaries(asked, attempts)
    assert row.prompt_tokens == 4096
    assert (row.last_ok, row.first_oom, row.probes) == (4_992, 5_056, len(attempts))


def test_without_a_search_the_measured_cells_say_what_they_can() -> None:
    attempts = [run(cell, 10_100) for cell in expand(spec(repeats=2))]
    rows = by_mode(boundaries(spec(repeats=2), attempts))
    baseline, streaming = rows["baseline"], rows["streaming"]
    assert (baseline.last_ok, baseline.first_oom, baseline.first_oom_index) == (8_000, 16_000, 10_100)
    assert (baseline.confirmed_ok, baseline.confirmed_oom, baseline.searched) == (2, 2, False)
    assert baseline.resolution == 8_000
    assert baseline.predicted is not None
    assert baseline.error_pct == pytest.approx((baseline.predicted - 10_100) / 10_100 * 100)
    assert (streaming.last_ok, streaming.first_oom, streaming.censored) == (16_000, None, True)


def test_pruned_and_broken_cells_are_no_evidence() -> None:
    cells = expand(spec(modes=["baseline"]))
    attempts = [
        run(cells[0], 10_100),
        attempt_of(cells[1], Outcome.INFRA_ERROR),
        dataclasses.replace(run(cells[2], 10_100), outcome=Outcome.PRUNED),
    ]
    (row,) = boundaries(spec(modes=["baseline"]), attempts)
    assert (row.last_ok, row.first_oom, row.censored) == (1_000, None, True)


def test_the_last_attempt_of_a_cell_counts() -> None:
    cell = expand(spec(modes=["baseline"]))[2]
    first = attempt_of(cell, Outcome.INFRA_ERROR, number=1)
    second = attempt_of(cell, Outcome.OOM_DECODE, index=10_100, number=2)
    for order in ([first, second], [second, first]):
        (row,) = boundaries(spec(modes=["baseline"]), order)
        assert row.first_oom == 16_000


def test_measured_cells_do_not_repeat_what_a_search_answered() -> None:
    asked = spec(boundary={"resolution": 64, "max_length": 20_000})
    attempts = [attempt for question in questions(asked) for attempt in search(question, 10_100)]
    attempts += [run(cell, 10_100) for cell in expand(asked)]
    rows = boundaries(asked, attempts)
    assert [row.searched for row in rows] == [True, True]


def test_each_device_kind_has_its_own_boundary() -> None:
    other = dataclasses.replace(CPU, kind="NVIDIA L4", uuid="GPU-1", total_bytes=2**34)
    asked = spec(modes=["baseline"], boundary={"resolution": 64, "max_length": 20_000})
    (question,) = questions(asked)
    rows = boundaries(asked, search(question, 10_100) + search(question, 700, other))
    found = {row.device_kind: (row.last_ok, row.first_oom) for row in rows}
    assert found == {"cpu": (10_048, 10_112), "NVIDIA L4": (640, 704)}


def test_a_model_that_cannot_be_read_has_a_row_without_a_prediction() -> None:
    broken = spec(models=[{"target": "./not-there"}], modes=["baseline"])
    (row,) = boundaries(broken, [run(cell, 10_100) for cell in expand(broken)])
    assert (row.last_ok, row.first_oom) == (8_000, 16_000)
    assert (row.predicted, row.error_pct, row.analytic_bytes_per_token) == (None, None, None)
