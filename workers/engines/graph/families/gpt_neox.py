"""GPT-NeoX (Pythia): q, k and v of a head lie side by side in one matrix; the residual may be parallel."""

from typing import Any

from workers.engines.graph.weights import Layer, Weights, linear, norm, weights_of


def describe(model: Any) -> Weights:
    config, base = model.config, model.base_model
    return weights_of(
        model,
        (_layer(layer) for layer in base.layers),
        norm(base.final_layer_norm),
        kv_heads=config.num_attention_heads,
        parallel=config.use_parallel_residual,
    )


def _layer(layer: Any) -> Layer:
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=(linear(layer.attention.query_key_value),),
        out=linear(layer.attention.dense),
        gate=None,
        up=linear(layer.mlp.dense_h_to_4h),
        down=linear(layer.mlp.dense_4h_to_h),
    )
