"""One module for each kind of layer: `describe(model)` reads a transformers model's tensors into `Weights`.

`workers.engines.families` says which family is read by which module.
"""

from importlib import import_module
from typing import Any

from workers.engines.graph.weights import Weights
from workers.engines.shared.refusals import family_of


def describe(model: Any) -> Weights:
    """Raises `ModeUnsupported`, naming what this engine lacks for the architecture."""
    weights: Weights = import_module(family_of(model, "run in the graph engine").graph).describe(model)
    return weights
