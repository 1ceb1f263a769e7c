"""One module for each kind of layer: `describe(model)` reads a transformers model's tensors into `Weights`.

`workers.engines.families` says which family is read by which module.
"""

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workers.engines.families import FAMILIES, missing
from workers.engines.graph.peers import Peers
from workers.engines.graph.weights import Linear, Weights
from workers.engines.session import ModeUnsupported

if TYPE_CHECKING:
    from workers.models.load import LoadedModel


def shard_of(loaded: "LoadedModel") -> Weights:
    """As `describe`, of a model or of a shard of one. A tied output matrix is cut here: a view of the embeddings' rows."""
    weights, shard = describe(loaded.model), loaded.shard
    if shard is None:
        return weights
    head, whole = weights.head, weights.vocab_size
    if len(head.weight_OI) == whole and whole % shard.count == 0:
        rows = slice(shard.index * whole // shard.count, (shard.index + 1) * whole // shard.count)
        head = Linear(head.weight_OI[rows], None if head.bias_O is None else head.bias_O[rows])
    return replace(weights, head=head, peers=Peers(shard.index, shard.count))


def describe(model: Any) -> Weights:
    """Raises `ModeUnsupported`, naming what this engine lacks for the architecture."""
    config = model.config
    refused = f"{type(model).__name__} cannot run in the graph engine"
    if reason := missing(config):
        raise ModeUnsupported(f"{refused}: {reason}")
    if getattr(model, "is_quantized", False):
        raise ModeUnsupported(
            f"{refused}: its weights are quantised ({config.quantization_config.quant_method.value}); its kernels read float32, "
            "float16 and bfloat16"
        )
    weights: Weights = import_module(FAMILIES[config.model_type].graph).describe(model)
    return weights
