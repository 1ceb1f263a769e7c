"""SmolLM3: Llama's layers, every fourth of which rotates nothing."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Weights, norm, rope, unrotated, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    rotated = rope(base.rotary_emb)
    layers = (
        llama_layer(layer, attention_of(layer, rope=0 if layer.self_attn.use_rope else 1))
        for layer in base.layers
    )
    return weights_of(model, layers, norm(base.norm), ropes=(rotated, unrotated(rotated)))
