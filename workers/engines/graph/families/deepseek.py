"""DeepSeek-V2, V3 and GLM-4.7-Flash: attention over latents, absorbed; experts chosen within groups, beside one that all tokens have.

The first layers have an MLP. V2 shares out by a softmax; the others by sigmoids, and choose with a bias of each expert.
"""

from typing import Any

from workers.engines.graph.families.llama import gated_mlp
from workers.engines.graph.weights import (
    Attention,
    Experts,
    Latent,
    Layer,
    Linear,
    Mlp,
    Routing,
    Weights,
    linear,
    norm,
    weights_of,
)


def describe(model: Any) -> Weights:
    config, base = model.config, model.base_model
    return weights_of(
        model,
        (_layer(layer, getattr(config, "rope_interleave", True)) for layer in base.layers),
        norm(base.norm),
        kv_heads=1,
        head_dim=config.qk_nope_head_dim + config.qk_rope_head_dim,
    )


def _layer(layer: Any, interleaved: bool) -> Layer:
    attention = layer.self_attn
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=(
            linear(attention.q_proj if attention.q_lora_rank is None else attention.q_a_proj),
            linear(attention.kv_a_proj_with_mqa),
        ),
        attention=Attention(attention.scaling, interleaved=interleaved, latent=_latent(attention)),
        out=linear(attention.o_proj),
        mlp=experts_or_mlp(layer.mlp),
    )


def _latent(attention: Any) -> Latent:
    keys = attention.qk_nope_head_dim
    up_HDZ = attention.kv_b_proj.weight.detach().unflatten(0, (-1, keys + attention.v_head_dim))
    return Latent(
        norm=norm(attention.kv_a_layernorm),
        turned=attention.qk_rope_head_dim,
        keys_HZD=up_HDZ[:, :keys].mT,
        values_HDZ=up_HDZ[:, keys:],
        query_up=None
        if attention.q_lora_rank is None
        else (norm(attention.q_a_layernorm), linear(attention.q_b_proj)),
    )


def experts_or_mlp(mlp: Any) -> Experts | Mlp:
    if not hasattr(mlp, "experts"):
        return gated_mlp(mlp)
    gate = mlp.gate
    return Experts(
        router=Linear(gate.weight.detach(), None),
        top=gate.top_k,
        gate_up_XOE=mlp.experts.gate_up_proj.detach(),
        down_XEI=mlp.experts.down_proj.detach(),
        routing=_softmax(gate) if hasattr(gate, "topk_method") else _sigmoid(gate),
        shared=gated_mlp(mlp.shared_experts),
    )


def _softmax(gate: Any) -> Routing:
    limited = gate.topk_method == "group_limited_greedy"
    return Routing(
        over_all=True,
        groups=(gate.num_group, gate.topk_group, 1) if limited else None,
        scale=float(gate.routed_scaling_factor),
        wide=True,
    )


def _sigmoid(gate: Any) -> Routing:
    return Routing(
        over_all=not gate.norm_topk_prob,
        sigmoid=True,
        bias_X=gate.e_score_correction_bias.detach(),
        groups=(gate.num_group, gate.topk_group, 2) if gate.topk_group < gate.num_group else None,
        scale=float(gate.routed_scaling_factor),
        wide=True,
    )
