"""Qwen3: Llama's layers, with a norm of each head of queries and keys before they are rotated."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Layer, Weights, norm, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (_layer(layer) for layer in base.layers), norm(base.norm))


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    normed = attention_of(layer, q_norm=norm(attention.q_norm), k_norm=norm(attention.k_norm))
    return llama_layer(layer, normed)
