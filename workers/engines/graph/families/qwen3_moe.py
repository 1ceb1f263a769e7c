"""Qwen3 with experts, in all of its layers or in some."""

from typing import Any

from workers.engines.graph.families.qwen3 import qwen3_layer
from workers.engines.graph.weights import Experts, Routing, Weights, linear, norm, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(
        model, (qwen3_layer(layer, softmax_experts(layer.mlp)) for layer in base.layers), norm(base.norm)
    )


def softmax_experts(mlp: Any) -> Experts | None:
    """None where a layer has an MLP."""
    if not hasattr(mlp, "experts"):
        return None
    return Experts(
        router=linear(mlp.gate),
        top=mlp.gate.top_k,
        gate_up_XOE=mlp.experts.gate_up_proj.detach(),
        down_XEI=mlp.experts.down_proj.detach(),
        routing=Routing(over_all=not mlp.gate.norm_topk_prob),
    )
