"""Gemma 2 and 3: norms before and after attention and MLP, embeddings scaled, local and global layers.

Gemma 2 caps scores and logits. Gemma 3 norms each head of queries and keys, and rotates local layers by other frequencies.
"""

from typing import Any

from workers.engines.graph.families.llama import gated_mlp, projections
from workers.engines.graph.weights import (
    Attention,
    Layer,
    Norm,
    Weights,
    late_norm,
    linear,
    ropes_by_kind,
    weights_of,
)


def describe(model: Any) -> Weights:
    config, base = model.config, model.base_model
    ropes = ropes_by_kind(base.rotary_emb)
    return weights_of(
        model,
        (_layer(layer, list(ropes)) for layer in base.layers),
        _norm(base.norm),
        ropes=tuple(ropes.values()),
        activation=config.hidden_activation,
        embedding_scale=float(base.embed_tokens.embed_scale.to(base.embed_tokens.weight.dtype)),
        logit_cap=config.final_logit_softcapping,
    )


def _norm(module: Any) -> Norm:
    return late_norm(module, offset=1.0)


def _layer(layer: Any, kinds: list[str]) -> Layer:
    attention = layer.self_attn
    kind = attention.layer_type
    normed = hasattr(attention, "q_norm")
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        mlp_norm=_norm(layer.pre_feedforward_layernorm),
        qkv=projections(attention),
        attention=Attention(
            attention.scaling,
            attention.sliding_window,
            rope=kinds.index(kind) if kind in kinds else 0,
            q_norm=_norm(attention.q_norm) if normed else None,
            k_norm=_norm(attention.k_norm) if normed else None,
            cap=None if normed else attention.attn_logit_softcapping,
        ),
        out=linear(attention.o_proj),
        mlp=gated_mlp(layer.mlp),
        attention_out=_norm(layer.post_attention_layernorm),
        mlp_out=_norm(layer.post_feedforward_layernorm),
    )
