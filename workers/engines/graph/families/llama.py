"""Llama, and the families whose layers are Llama's: Mistral without a window, Qwen2 (with biases)."""

from typing import Any

from workers.engines.graph.weights import Layer, Weights, linear, norm, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    layers = (_layer(layer) for layer in base.layers)
    return weights_of(model, layers, norm(base.norm), kv_heads=model.config.num_key_value_heads)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=(linear(attention.q_proj), linear(attention.k_proj), linear(attention.v_proj)),
        out=linear(attention.o_proj),
        gate=linear(mlp.gate_proj),
        up=linear(mlp.up_proj),
        down=linear(mlp.down_proj),
    )
