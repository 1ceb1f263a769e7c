"""StableLM: Llama's layers with LayerNorms, a part of each head rotated."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Weights, norm, weights_of
from workers.engines.session import ModeUnsupported


def describe(model: Any) -> Weights:
    """Raises `ModeUnsupported` for StableLM-2-12B's layers: parallel, with LayerNorms of heads."""
    config, base = model.config, model.base_model
    if config.use_parallel_residual or config.qk_layernorm:
        raise ModeUnsupported(
            "the graph engine runs StableLM without parallel residuals and without norms of heads"
        )
    layers = (llama_layer(layer, attention_of(layer)) for layer in base.layers)
    return weights_of(model, layers, norm(base.norm))
