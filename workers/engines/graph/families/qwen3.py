"""Qwen3: Llama's layers, with a norm of each head of queries and keys before they are rotated."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Experts, Layer, Weights, norm, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (qwen3_layer(layer) for layer in base.layers), norm(base.norm))


def qwen3_layer(layer: Any, mlp: Experts | None = None) -> Layer:
    """`mlp`: experts in the place of an MLP."""
    attention = layer.self_attn
    normed = attention_of(layer, q_norm=norm(attention.q_norm), k_norm=norm(attention.k_norm))
    return llama_layer(layer, normed, mlp)
