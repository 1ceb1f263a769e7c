"""Mixtral: Mistral's attention, with experts in every layer."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Experts, Weights, linear, norm, weights_of


def describe(model: Any) -> Weights:
    base, window = model.base_model, model.config.sliding_window
    layers = (
        llama_layer(layer, attention_of(layer, sliding_window=window), _experts(layer.mlp))
        for layer in base.layers
    )
    return weights_of(model, layers, norm(base.norm))


def _experts(mlp: Any) -> Experts:
    return Experts(
        router=linear(mlp.gate),
        top=mlp.gate.top_k,
        gate_up_XOE=mlp.experts.gate_up_proj.detach(),
        down_XEI=mlp.experts.down_proj.detach(),
    )
