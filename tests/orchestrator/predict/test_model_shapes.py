"""Shapes of a cell's models: both or none, each config read once."""

import dataclasses

import pytest

from orchestrator.predict import shard
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.shape import ModelShape, shape_for
from workers.cell import Cell, ModelRef

TARGET, DRAFT = "random:pythia-160m", "random:pythia-14m"


def cell(**model: str | None) -> Cell:
    ref = ModelRef(**{"target": TARGET, "draft": DRAFT, **model})  # type: ignore[arg-type]
    return Cell(model=ref, mode="baseline", engine="eager", prompt_tokens=8, length=8)


def test_each_config_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(name: str, ref: ModelRef) -> ModelShape:
        read.append(name)
        return shape_for(name, ref)

    monkeypatch.setattr(shard, "shape_for", counted)
    shapes = ModelShapes()
    for length in (1, 2):
        assert shapes.of(dataclasses.replace(cell(), length=length)).target == shape_for(TARGET, cell().model)
    assert shapes.of(cell(draft=None)).draft is None
    assert read == [TARGET, DRAFT]


def test_an_unknown_draft_leaves_nothing_to_tell() -> None:
    shapes = ModelShapes()
    assert shapes.of(cell(draft="random:nothing")) == CellShapes(None)
    assert list(shapes.unknown) == ["random:nothing"]
    assert shapes.of(cell()).draft is not None


def test_weights_of_unknown_size_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a model has a shape, and is searched; it cannot be planned."""

    def unweighed(name: str, ref: ModelRef) -> ModelShape:
        return dataclasses.replace(shape_for(name, ref), weight_numels=None, fixed_bytes=None)

    monkeypatch.setattr(shard, "shape_for", unweighed)
    shapes = ModelShapes()
    assert shapes.of(cell()).target is not None
    assert not shapes.unknown
    assert shapes.weighed(cell()) == CellShapes(None)
    assert list(shapes.unknown) == [TARGET, DRAFT]
