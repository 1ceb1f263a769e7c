"""Mistral: Llama's layers, each of which may see a window alone."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Weights, norm, weights_of


def describe(model: Any) -> Weights:
    base, window = model.base_model, model.config.sliding_window
    layers = (llama_layer(layer, attention_of(layer, sliding_window=window)) for layer in base.layers)
    return weights_of(model, layers, norm(base.norm))
