"""Phi-3 and Phi-4: q, k, v in one matrix, gate and up in another; a part of each head is rotated, or all of it."""

from typing import Any

from workers.engines.graph.families.llama import attention_of
from workers.engines.graph.weights import Layer, Mlp, Weights, head_dim, linear, norm, rows_of, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (_layer(layer, model.config) for layer in base.layers), norm(base.norm))


def _layer(layer: Any, config: Any) -> Layer:
    queries, keys = (
        count * head_dim(config) for count in (config.num_attention_heads, config.num_key_value_heads)
    )
    gate, up = rows_of(layer.mlp.gate_up_proj, config.intermediate_size, config.intermediate_size)
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=rows_of(layer.self_attn.qkv_proj, queries, keys, keys),
        attention=attention_of(layer, sliding_window=config.sliding_window),
        out=linear(layer.self_attn.o_proj),
        mlp=Mlp(gate, up, linear(layer.mlp.down_proj)),
    )
