"""OLMo-2 and OLMo-3: nothing is normed before attention and MLP, but what they add is; queries and keys are normed over
all heads together. OLMo-3 has windows."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, gated_mlp, projections
from workers.engines.graph.weights import (
    Layer,
    Weights,
    late_norm,
    linear,
    no_norm,
    ropes_by_kind,
    weights_of,
)


def describe(model: Any) -> Weights:
    base = model.base_model
    ropes = ropes_by_kind(base.rotary_emb)
    layers = (_layer(layer, list(ropes)) for layer in base.layers)
    return weights_of(model, layers, late_norm(base.norm), ropes=tuple(ropes.values()))


def _layer(layer: Any, kinds: list[str]) -> Layer:
    attention = layer.self_attn
    kind = getattr(attention, "attention_type", "")
    after = late_norm(layer.post_attention_layernorm)
    return Layer(
        attention_norm=no_norm(after),
        mlp_norm=no_norm(after),
        qkv=projections(attention),
        attention=attention_of(
            layer,
            rope=kinds.index(kind) if kind in kinds else 0,
            q_norm=late_norm(attention.q_norm),
            k_norm=late_norm(attention.k_norm),
        ),
        out=linear(attention.o_proj),
        mlp=gated_mlp(layer.mlp),
        attention_out=after,
        mlp_out=late_norm(layer.post_feedforward_layernorm),
    )
