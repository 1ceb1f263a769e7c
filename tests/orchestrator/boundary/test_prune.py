"""What one out-of-memory spares others."""

import dataclasses

import pytest

from orchestrator.boundary.prune import implied, prune
from tests.orchestrator.boundary.attempts import attempt_of
from workers.cell import Cell, ModelRef
from workers.outcome import Outcome

CELL = Cell(
    model=ModelRef(target="pocket"),
    mode="baseline",
    engine="eager",
    prompt_tokens=64,
    length=4000,
    budget=2**26,
)


def like(**changes: object) -> Cell:
    return dataclasses.replace(CELL, **changes)  # type: ignore[arg-type]


def test_longer_cells_of_the_same_kind_are_implied_and_their_seconds_counted() -> None:
    attempt = attempt_of(CELL, Outcome.OOM_DECODE, index=3000)
    queued = [like(length=length, repeat=repeat) for length in (2000, 3000, 3001, 8000) for repeat in (0, 1)]
    pruned = prune(attempt, queued, lambda cell: float(cell.length))
    assert [(entry.cell.length, entry.cell.repeat) for entry in pruned] == [
        *((3001, 0), (3001, 1), (8000, 0), (8000, 1))
    ]
    assert {entry.because for entry in pruned} == {CELL.cell_id}
    assert sum(entry.saved_s for entry in pruned) == 2 * (3001 + 8000)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": 2**27},
        {"budget": None},
        {"batch_size": 2},
        {"prompt_tokens": 16},
        {"engine": "graph"},
        {"repetition_penalty": 1.2},
        {"model": ModelRef(target="pocket", dtype="float32")},
        {"purpose": "probe"},
    ],
)
def test_others_are_not(changes: dict[str, object]) -> None:
    attempt = attempt_of(CELL, Outcome.OOM_DECODE, index=3000)
    assert implied(attempt, like(length=8000))
    assert not implied(attempt, like(length=8000, **changes))


@pytest.mark.parametrize("outcome", [Outcome.OOM_LOAD, Outcome.OOM_PREFILL])
def test_an_oom_before_the_first_token_implies_every_length(outcome: Outcome) -> None:
    assert implied(attempt_of(CELL, outcome), like(length=1))


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.OOM_HOST, Outcome.CRASHED, Outcome.TIMEOUT])
def test_other_outcomes_imply_nothing(outcome: Outcome) -> None:
    assert not implied(attempt_of(CELL, outcome), like(length=8000))
