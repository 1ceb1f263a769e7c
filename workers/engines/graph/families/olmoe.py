"""OLMoE: Llama's layers, queries and keys normed over all heads together, experts in every layer."""

from typing import Any

from workers.engines.graph.families.qwen3 import qwen3_layer
from workers.engines.graph.families.qwen3_moe import softmax_experts
from workers.engines.graph.weights import Weights, norm, weights_of
from workers.engines.session import ModeUnsupported


def describe(model: Any) -> Weights:
    """Raises `ModeUnsupported` where queries, keys and values are clipped."""
    base = model.base_model
    if model.config.clip_qkv is not None:
        raise ModeUnsupported("the graph engine does not clip queries, keys and values (clip_qkv)")
    layers = (qwen3_layer(layer, softmax_experts(layer.mlp)) for layer in base.layers)
    return weights_of(model, layers, norm(base.norm))
