"""The shapes of a cell's models, each config read once."""

import dataclasses
from typing import NamedTuple

from orchestrator.predict.shape import ModelShape, ShapeError, shape_for
from workers.cell import Cell, ModelRef
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
        self._known: dict[ModelRef, ModelShape | None] = {}
        self._of: dict[ModelRef, CellShapes] = {}

    def of(self, cell: Cell) -> CellShapes:
        """None where a config cannot be read, or does not tell."""
        if cell.model not in self._of:  # asked for once per cell, of few models
            self._of[cell.model] = self._both(cell.model)
        return self._of[cell.model]

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
        known = {name: self._one(name, model) for name in names}
        return [
            f"{name}: its weights are quantised, counted as they are stored; what its kernels unpack beside them is not counted"
            for name, shape in known.items()
            if shape is not None and shape.is_quantised and name not in self.unknown
        ]

    def _both(self, model: ModelRef) -> CellShapes:
        target = self._one(model.target, model)
        if model.draft is None:
            return CellShapes(target)
        draft = self._one(model.draft, model)
        return CellShapes(None) if target is None or draft is None else CellShapes(target, draft)

    def _one(self, name: str, ref: ModelRef) -> ModelShape | None:
        alone = dataclasses.replace(ref, target=name, draft=None)
        if alone not in self._known:
            try:
                self._known[alone] = shape_for(name, ref)
            except (LoadError, ShapeError) as error:
                self._known[alone] = None
                self.unknown.setdefault(name, str(error))
        return self._known[alone]
