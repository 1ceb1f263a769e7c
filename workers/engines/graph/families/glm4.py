"""GLM-4: norms before and after attention and MLP, neighbours of a part of each head rotated, gate and up in one matrix."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, projections
from workers.engines.graph.weights import Layer, Mlp, Weights, linear, norm, rows_of, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (_layer(layer) for layer in base.layers), norm(base.norm))


def _layer(layer: Any) -> Layer:
    down = linear(layer.mlp.down_proj)
    inner = down.weight_OI.shape[1]
    gate, up = rows_of(layer.mlp.gate_up_proj, inner, inner)
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=projections(layer.self_attn),
        attention=attention_of(layer, interleaved=True),
        out=linear(layer.self_attn.o_proj),
        mlp=Mlp(gate, up, down),
        attention_out=norm(layer.post_self_attn_layernorm),
        mlp_out=norm(layer.post_mlp_layernorm),
    )
