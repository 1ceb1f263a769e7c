"""Rehearsals in other processes: what they find is what this process would have found, and nothing waits for them."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.boundary.question import questions
from orchestrator.forecast import forecast
from orchestrator.predict.memory import predict
from orchestrator.predict.rehearsed import answers, store
from orchestrator.predict.rehearsed.background import Background, Call, answer_in_parallel
from orchestrator.sweep.work.estimates import Predictions
from tests.orchestrator.predict.test_answers import CELL, H100, PROFILE, SHAPE
from tests.orchestrator.sweep.simulated import spec
from workers.cell import Cell

pytestmark = pytest.mark.usefixtures("own_answers")

_LIMIT_S = 120.0


@pytest.fixture
def background() -> Iterator[Background]:
    found = Background(1)
    yield found
    found.close()


def ask(cell: Cell) -> None:
    predict(cell, SHAPE, None, PROFILE)


def die(cell: Cell) -> None:
    os._exit(3)


def wait_for(call: Call, background: Background) -> None:
    until = time.monotonic() + _LIMIT_S
    while not background.is_ready(call.function.__name__, call):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_finds_what_this_process_would(background: Background, tmp_path: Path) -> None:
    call = Call("family", ask, (CELL,))
    assert not background.is_ready(call.function.__name__, call)
    with store.known_only():
        assert predict(CELL, SHAPE, None, PROFILE).predicted_by == "formula"
    wait_for(call, background)
    with store.known_only() as missed:
        found = predict(CELL, SHAPE, None, PROFILE)
    assert not missed
    assert found.predicted_by == "rehearsal"
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    store.forget()
    assert predict(CELL, SHAPE, None, PROFILE) == found


def test_a_process_that_dies_leaves_the_formulas(background: Background) -> None:
    wait_for(Call("family", die, (CELL,)), background)
    with store.known_only():
        assert predict(CELL, SHAPE, None, PROFILE).predicted_by == "formula"


def test_a_process_that_died_is_followed_by_another(background: Background) -> None:
    wait_for(Call("family", die, (CELL,)), background)
    wait_for(Call("family", ask, (CELL,)), background)
    with store.known_only():
        assert predict(CELL, SHAPE, None, PROFILE).predicted_by == "rehearsal"


def test_a_search_starts_once_its_prediction_is_there(background: Background) -> None:
    asked = spec(
        models=[{"target": "random:pythia-14m"}],
        modes=["baseline"],
        budgets=[f"{CELL.budget}B"],
        boundary={"resolution": 64, "max_length": 131072, "confirm": 1},
    )
    [question] = questions(asked)
    estimates, at_once = Predictions(background), Predictions()
    assert estimates.start(question, H100) is None
    estimates.foresee(CELL, H100)
    until = time.monotonic() + _LIMIT_S
    while (started := estimates.start(question, H100)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert started == at_once.start(question, H100)
    while (peak := estimates.peak(CELL, H100)) is None or peak.predicted_by == "formula":
        assert time.monotonic() < until
        estimates.foresee(CELL, H100)
        time.sleep(0.05)
    assert peak == at_once.peak(CELL, H100)


def test_what_cannot_be_rehearsed_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr("workers.rehearsal.eager._load", lambda *_: tried.append(1) or 1 / 0)
    cell = dataclasses.replace(CELL, batch_size=7)
    for _ in range(3):
        assert predict(cell, SHAPE, None, PROFILE).predicted_by == "formula"
    assert len(tried) == 1


def test_calls_are_answered_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [CELL, dataclasses.replace(CELL, batch_size=2)]
    answer_in_parallel([Call(answers.kin(cell), ask, (cell,)) for cell in cells], processes=2)
    monkeypatch.setattr(answers, "_peak", lambda *_: pytest.fail("asked again"))
    assert {predict(cell, SHAPE, None, PROFILE).predicted_by for cell in cells} == {"rehearsal"}
    assert forecast(spec(models=[{"target": "random:pythia-14m"}]), "cpu").forecasts
