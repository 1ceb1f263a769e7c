"""Llama, and Qwen2, which has biases, and may have windows in some of its layers."""

from typing import Any

from workers.engines.graph.weights import (
    Attention,
    Experts,
    Layer,
    Linear,
    Mlp,
    Weights,
    linear,
    norm,
    weights_of,
)


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(
        model, (llama_layer(layer, attention_of(layer)) for layer in base.layers), norm(base.norm)
    )


def attention_of(layer: Any, **own: Any) -> Attention:
    """`own`: further fields. The window is the layer's, where it has one."""
    attention = layer.self_attn
    return Attention(
        **{"scale": attention.scaling, "sliding_window": getattr(attention, "sliding_window", None), **own}
    )


def llama_layer(layer: Any, attention: Attention, mlp: Mlp | Experts | None = None) -> Layer:
    """`mlp`: of another kind than Llama's."""
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=projections(layer.self_attn),
        attention=attention,
        out=linear(layer.self_attn.o_proj),
        mlp=mlp or gated_mlp(layer.mlp),
    )


def projections(attention: Any) -> tuple[Linear, Linear, Linear]:
    return linear(attention.q_proj), linear(attention.k_proj), linear(attention.v_proj)


def gated_mlp(mlp: Any) -> Mlp:
    return Mlp(linear(mlp.gate_proj), linear(mlp.up_proj), linear(mlp.down_proj))
