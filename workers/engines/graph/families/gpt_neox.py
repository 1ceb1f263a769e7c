"""GPT-NeoX (Pythia): q, k and v of a head lie side by side in one matrix; the residual may be parallel."""

from typing import Any

from workers.engines.graph.weights import (
    Attention,
    Layer,
    Mlp,
    Weights,
    head_dim,
    linear,
    norm,
    weights_of,
)


def describe(model: Any) -> Weights:
    config, base = model.config, model.base_model
    return weights_of(
        model,
        (_layer(layer, Attention(head_dim(config) ** -0.5)) for layer in base.layers),
        norm(base.final_layer_norm),
        parallel=config.use_parallel_residual,
    )


def _layer(layer: Any, attention: Attention) -> Layer:
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=(linear(layer.attention.query_key_value),),
        attention=attention,
        out=linear(layer.attention.dense),
        mlp=Mlp(None, linear(layer.mlp.dense_h_to_4h), linear(layer.mlp.dense_4h_to_h)),
    )
