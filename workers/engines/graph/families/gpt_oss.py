"""gpt-oss: a learned score in each softmax, local and global layers by turns, biases, experts with a clamped gate.

Its experts' matrices are stored with inputs outermost, gate and up by turns.
"""

from typing import Any

from workers.engines.graph.families.llama import attention_of, projections
from workers.engines.graph.weights import Experts, Layer, Weights, late_norm, linear, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (_layer(layer) for layer in base.layers), late_norm(base.norm))


def _layer(layer: Any) -> Layer:
    return Layer(
        attention_norm=late_norm(layer.input_layernorm),
        mlp_norm=late_norm(layer.post_attention_layernorm),
        qkv=projections(layer.self_attn),
        attention=attention_of(layer, sinks_H=layer.self_attn.sinks.detach()),
        out=linear(layer.self_attn.o_proj),
        mlp=_experts(layer.mlp),
    )


def _experts(mlp: Any) -> Experts:
    router, experts = mlp.router, mlp.experts
    return Experts(
        router=linear(router),
        top=router.top_k,
        gate_up_XOE=experts.gate_up_proj.detach().mT,
        down_XEI=experts.down_proj.detach().mT,
        gate_up_bias_XO=experts.gate_up_proj_bias.detach(),
        down_bias_XE=experts.down_proj_bias.detach(),
        interleaved=True,
        clamp=(experts.alpha, experts.limit),
    )
