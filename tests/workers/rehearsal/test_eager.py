"""The eager engine's passes, rehearsed on a CPU, against the events that an H100 recorded of them."""

import dataclasses
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import logging as transformers_logging

from tests.benchmarks.prediction.shapes import benchmark_shapes
from workers.cell import Cell, ModelRef, Speculation, Streaming
from workers.rehearsal.eager import EagerRehearsal
from workers.rehearsal.passes import NotRehearsable, PassTrace

RECORDED = Path(__file__).parents[2] / "orchestrator" / "predict" / "recorded" / "lfm2-1.2b-h100.npz"
SMALL = Cell(
    model=ModelRef(target="random:pythia-14m"),
    mode="baseline",
    engine="eager",
    prompt_tokens=600,
    length=8,
    prefill_chunk=128,
)


def canonical(events: list[int], start: int = 0) -> list[int | str]:
    """Sizes, frees of a pass's own by ordinal (negative), and "earlier" for what came before the pass."""
    own: dict[int, int] = {}
    told: list[int | str] = []
    for index, event in enumerate(events):
        if event >= 0:
            own[index] = len(own)
            told.append(event)
        else:
            told.append(~own[~event - start] if ~event - start in own else "earlier")
    return told


def told(trace: PassTrace) -> list[int | str]:
    return [
        trace.sizes[event] if event >= 0 else "earlier" if ~event & 1 else ~(~event >> 1)
        for event in trace.events
    ]


def test_a_prompts_passes_are_those_of_the_card_event_by_event(tmp_path: Path) -> None:
    shape = next(shape for shape in benchmark_shapes() if shape.name == "lfm2-1.2b")
    cell = dataclasses.replace(SMALL, model=ModelRef(target=shape.write(tmp_path)), prefill_chunk=1024)
    rehearsal = EagerRehearsal(cell)
    with np.load(RECORDED) as content:
        key = "lfm2-1.2b/baseline/default/5GiB"
        events, marks = content[f"{key}/trace"].tolist(), content[f"{key}/marks"].tolist()
    for number in (0, 1, 2, 20):
        recorded = canonical(events[marks[number] : marks[number + 1]], marks[number])
        assert told(rehearsal.chunk(number * 1024, 1024)) == recorded


def test_what_a_pass_leaves_the_next_one_frees() -> None:
    rehearsal = EagerRehearsal(SMALL)
    first, second = rehearsal.chunk(0, 128), rehearsal.chunk(128, 128)
    cached = [label for _, label in first.leaves if label.startswith("cache")]
    assert len(cached) == 2 * 6  # keys and values of six layers
    assert set(second.frees) >= set(cached)
    grown = {label: second.sizes[own] for own, label in second.leaves}
    assert all(grown[label] == 2 * first.sizes[own] for own, label in first.leaves if label in cached)


def test_a_rehearsal_says_nothing_of_long_texts() -> None:
    """transformers warns of a text longer than those of the training: in a run, not in a plan."""
    transformers_logging.warning_once.cache_clear()
    said = MemoryHandler(capacity=100)
    transformers_logging.add_handler(said)
    try:
        EagerRehearsal(SMALL).generation(4000, read=True)
    finally:
        transformers_logging.remove_handler(said)
    assert said.buffer == []


@pytest.mark.parametrize("read", [False, True])
def test_a_generation_has_a_start_and_a_steady_step(read: bool) -> None:
    generation = EagerRehearsal(SMALL).generation(600, read=read)
    freed, left = set(generation.steady.frees), {label for _, label in generation.steady.leaves}
    assert freed == left
    assert freed == {label for _, label in generation.first.leaves}


@pytest.mark.parametrize(
    "cell",
    [
        dataclasses.replace(SMALL, mode="streaming", streaming=Streaming(sinks=4, window=64)),
        dataclasses.replace(
            SMALL,
            mode="baseline+spec",
            model=ModelRef(target="random:pythia-31m", draft="random:pythia-14m"),
            speculation=Speculation(gamma=3, acceptance=0.5),
        ),
    ],
    ids=["streaming", "speculation"],
)
def test_other_modes_are_rehearsed_by_their_own_session(cell: Cell) -> None:
    generation = EagerRehearsal(cell).generation(300, read=False)
    assert generation.steady.sizes


def test_a_pass_that_scores_holds_its_logits_until_the_next_has_its_own() -> None:
    rehearsal = EagerRehearsal(dataclasses.replace(SMALL, workload="score", prompt_tokens=0))
    first, second, third = (rehearsal.scored(at, 128) for at in (0, 128, 256))
    logits = 128 * 50304 * 2
    kept = [label for own, label in first.leaves if first.sizes[own] == logits]
    assert len(kept) == 1
    assert set(second.frees) >= {*kept, *(label for _, label in first.leaves if label.startswith("cache"))}
    assert third.is_like(second)
    last = rehearsal.scored(256, 40)
    assert set(last.frees) == set(third.frees)
    assert {label for _, label in last.leaves} == {x for _, x in third.leaves if x not in kept}


def test_a_batch_takes_its_share_of_everything_that_grows() -> None:
    one = EagerRehearsal(SMALL).chunk(128, 128)
    three = EagerRehearsal(dataclasses.replace(SMALL, batch_size=3)).chunk(128, 128)
    for own, label in one.leaves:
        if label.startswith("cache"):
            assert {b: a for a, b in three.leaves}[label] == own
            assert three.sizes[own] == 3 * one.sizes[own]


def test_what_cannot_be_run_is_refused_in_one_line() -> None:
    with pytest.raises(NotRehearsable, match=r"^[^\n]+$"):
        EagerRehearsal(dataclasses.replace(SMALL, model=ModelRef(target="random:nowhere")))
