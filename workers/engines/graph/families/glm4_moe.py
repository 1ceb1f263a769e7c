"""GLM-4.5: Llama's attention, each head normed or not, a part of it rotated; DeepSeek-V3's experts."""

from typing import Any

from workers.engines.graph.families.deepseek import experts_or_mlp
from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Layer, Weights, norm, weights_of


def describe(model: Any) -> Weights:
    base = model.base_model
    return weights_of(model, (_layer(layer) for layer in base.layers), norm(base.norm))


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    norms = {name: norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if attention.use_qk_norm}
    return llama_layer(layer, attention_of(layer, **norms), experts_or_mlp(layer.mlp))
