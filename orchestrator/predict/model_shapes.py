"""The shapes of a cell's models, each config read once."""

import dataclasses
from typing import NamedTuple

from orchestrator.predict.shape import ModelShape, ShapeError
from orchestrator.predict.shard import shape_of_shard
from workers.cell import Cell, Engine, ModelRef
from workers.models import LoadError

_UNWEIGHED = {
    False: "transformers cannot build it from its config",
    True: "its weights are quantised, and the headers of its files, which tell their size, cannot be had here",
}


class CellShapes(NamedTuple):
    """Of target and draft. Both or none: with an unknown draft nothing can be told of the cell."""

    target: ModelShape | None
    draft: ModelShape | None = None


class ModelShapes:
    """Reads shapes and keeps them. `unknown`: by name, why a model's config cannot be read or does not tell."""

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        self._known: dict[_AskedShape, ModelShape | str] = {}
        self._of: dict[_AskedShape, CellShapes] = {}

    def of(self, cell: Cell) -> CellShapes:
        """What each of the cell's devices holds. None where a config cannot be read, does not tell, or cannot be cut so."""
        asked = _AskedShape(cell.model, cell.devices, cell.engine if cell.devices > 1 else None)
        if asked not in self._of:  # asked for once per cell, of few models
            self._of[asked] = self._both(asked)
        return self._of[asked]

    def weighed(self, cell: Cell) -> CellShapes:
        """As `of`; None also where the size of the weights is unknown."""
        shapes = self.of(cell)
        for name, shape in zip((cell.model.target, cell.model.draft), shapes, strict=True):
            if name is not None and shape is not None and shape.weights_bytes(cell.model.dtype) is None:
                self.unknown.setdefault(name, _UNWEIGHED[shape.is_quantised])
                shapes = CellShapes(None)
        return shapes

    def notes(self, model: ModelRef) -> list[str]:
        """What a reader of a prediction should know of the sizes that it started from, a line each."""
        names = [name for name in (model.target, model.draft) if name is not None]
        known = {name: self._one(name, _AskedShape(model)) for name in names}
        return [
            f"{name}: its weights are quantised, counted as they are stored; what its kernels unpack beside them is not counted"
            for name, shape in known.items()
            if shape is not None and shape.is_quantised and name not in self.unknown
        ]

    def _both(self, asked: "_AskedShape") -> CellShapes:
        target = self._one(asked.model.target, asked)
        if asked.model.draft is None:
            return CellShapes(target)
        draft = self._one(asked.model.draft, asked)
        return CellShapes(None) if target is None or draft is None else CellShapes(target, draft)

    def _one(self, name: str, asked: "_AskedShape") -> ModelShape | None:
        alone = asked._replace(model=dataclasses.replace(asked.model, target=name, draft=None))
        if alone not in self._known:
            try:
                self._known[alone] = shape_of_shard(name, asked.model, asked.engine, asked.devices)
            except (LoadError, ShapeError) as error:
                self._known[alone] = str(error)
        found = self._known[alone]
        if isinstance(found, str):
            self.unknown.setdefault(name, found)
            return None
        return found


class _AskedShape(NamedTuple):
    """`engine`: which cuts the model for several devices; None where nothing is cut."""

    model: ModelRef
    devices: int = 1
    engine: Engine | None = None
