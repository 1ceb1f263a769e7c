"""Passes put together from a few layers, against passes of all layers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.prediction.shapes import benchmark_shapes
from tests.workers.rehearsal.test_eager import SMALL
from workers.cell import Cell, ModelRef
from workers.rehearsal.alike import AlikeLayers, DiffersByLayer, SeenPass, _Whole
from workers.rehearsal.eager import EagerRehearsal
from workers.rehearsal.passes import PassTrace


@pytest.fixture(params=["pythia-14m", "lfm2-1.2b", "gemma-3-4b"], ids=["dense", "hybrid", "windows"])
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Cell:
    """One kind of layers, or two."""
    shape = next((shape for shape in benchmark_shapes() if shape.name == request.param), None)
    target = f"random:{request.param}" if shape is None else shape.write(tmp_path)
    return dataclasses.replace(SMALL, model=ModelRef(target=target))


def chunk(rehearsal: EagerRehearsal, position: int, tokens: int) -> PassTrace:
    return rehearsal.chunk(position, tokens)


def generation(rehearsal: EagerRehearsal, position: int, tokens: int) -> PassTrace:
    return rehearsal.generation(position + tokens, read=True).steady


@pytest.mark.parametrize("passes", [chunk, generation])
def test_a_pass_of_a_few_layers_tells_that_of_all(
    cell: Cell, passes: Callable[[EagerRehearsal, int, int], PassTrace], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_together: list[int] = []
    whole = AlikeLayers.whole

    def counted(layers: AlikeLayers, seen: SeenPass) -> PassTrace:
        put_together.append(len(seen.trace.sizes))
        return whole(layers, seen)

    monkeypatch.setattr(AlikeLayers, "whole", counted)
    some, every = EagerRehearsal(cell), EagerRehearsal(cell)
    passes(some, 128, 128)
    put_together.clear()
    told = passes(some, 1280, 77)
    assert put_together
    assert max(put_together) < len(told.sizes)
    put_together.clear()
    assert passes(every, 1280, 77) == told  # the first of its kind: of all layers


def test_where_a_few_layers_do_not_tell_all_are_run(tmp_path: Path) -> None:
    """Of a text of one token a layer leaves more to the next pass than its cache."""
    shape = next(shape for shape in benchmark_shapes() if shape.name == "gpt-oss-20b")
    cell = dataclasses.replace(SMALL, model=ModelRef(target=shape.write(tmp_path)))
    some, every = EagerRehearsal(cell), EagerRehearsal(cell)
    some.start(2000, read=True)
    assert some.start(1, read=True) == every.start(1, read=True)


def test_a_layer_that_does_what_others_do_not_is_run() -> None:
    """What the second layer frees was there before the first: the third has nothing like it."""
    trace = PassTrace((8, 4, 4, 4, 4), (0, 1, 2, ~2, ~0, 3, ~4, 4, ~6), (), ((4, "cache 0 3 0"),))
    layers = _Whole(SeenPass(trace, ((1, 0), (2, 1), (5, 2), (5, 3))), {2: 1})
    with pytest.raises(DiffersByLayer):
        layers.trace()
