"""What streaming means, twice over, written to be read and not to be fast.

`reference_logits` is StreamingLLM literally (mit-han-lab/streaming-llm, arXiv:2309.17453): keys cached before
RoPE, every cached key rotated again at its place in the cache at each step, eviction after the forward pass.
`oracle_logits` is the same function as one dense pass under a mask, with two rotated queries.
Neither knows of the other, nor of any cache. Families: GPT-NeoX and Llama. Everything in the model's own
dtype, angles in float64.
"""

import torch
from torch import nn


@torch.no_grad()
def reference_logits(model: nn.Module, ids_T: torch.Tensor, sinks: int, window: int) -> torch.Tensor:
    """[T, V]: row t after reading token t alone; a query sees `sinks + window` cached keys and itself."""
    caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in _layers(model)]
    rows = []
    for token in ids_T.tolist():
        hidden_1E = _embedding(model)(torch.tensor([token], device=_device(model)))
        for cache, layer in zip(caches, _layers(model), strict=True):

            def attend(
                q_1HD: torch.Tensor, k_1KD: torch.Tensor, v_1KD: torch.Tensor, cache=cache
            ) -> torch.Tensor:
                cache.append((k_1KD, v_1KD))
                positions = torch.arange(len(cache), device=q_1HD.device)
                k_CKD = _rotate(model, torch.cat([k for k, _ in cache]), positions)
                v_CKD = torch.cat([v for _, v in cache])
                weights_H1C = _scores(_rotate(model, q_1HD, positions[-1:]), k_CKD).softmax(-1)
                out_1HD = torch.einsum("hqc,chd->qhd", weights_H1C, _expand(v_CKD, q_1HD.shape[1]))
                if len(cache) > sinks + window:
                    del cache[sinks]
                return out_1HD

            hidden_1E = _layer(layer, hidden_1E, attend)
        rows.append(_head(model, hidden_1E))
    return torch.cat(rows)


@torch.no_grad()
def oracle_logits(model: nn.Module, ids_T: torch.Tensor, sinks: int, window: int) -> torch.Tensor:
    """[T, V] in one O(T^2) pass: query t sees sinks from `min(t, sinks + window)`, the window from `t`."""
    position_T = torch.arange(len(ids_T), device=_device(model))
    distance_TT = position_T[:, None] - position_T[None, :]
    is_sink_T = position_T < sinks
    visible_TT = (distance_TT >= 0) & (is_sink_T[None, :] | (distance_TT <= window))

    def attend(q_THD, k_TKD, v_TKD):
        k_TKD = _rotate(model, k_TKD, position_T)
        near_HTT = _scores(_rotate(model, q_THD, position_T), k_TKD)
        far_HTT = _scores(_rotate(model, q_THD, position_T.clamp(max=sinks + window)), k_TKD)
        scores_HTT = torch.where(is_sink_T[None, None, :], far_HTT, near_HTT)
        weights_HTT = scores_HTT.masked_fill(~visible_TT, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights_HTT, _expand(v_TKD, q_THD.shape[1]))

    hidden_TE = _embedding(model)(ids_T.to(_device(model)))
    for layer in _layers(model):
        hidden_TE = _layer(layer, hidden_TE, attend)
    return _head(model, hidden_TE)


def _scores(q_QHD, k_CKD):
    return torch.einsum("qhd,chd->hqc", q_QHD, _expand(k_CKD, q_QHD.shape[1])) * q_QHD.shape[-1] ** -0.5


def _expand(x_CKD, heads):
    """Each key/value head serves `heads / K` neighbouring query heads."""
    return x_CKD.repeat_interleave(heads // x_CKD.shape[1], dim=1)


def _rotate(model, x_THD, position_T):
    """RoPE in float64 on the first `2 * len(inv_freq)` numbers of each head, half split."""
    rotary = model.base_model.rotary_emb
    angle_TF = position_T.double()[:, None] * rotary.inv_freq.double()[None, :]
    cos = (angle_TF.cos() * rotary.attention_scaling)[:, None, :]
    sin = (angle_TF.sin() * rotary.attention_scaling)[:, None, :]
    half = angle_TF.shape[1]
    a, b, rest = x_THD[..., :half].double(), x_THD[..., half : 2 * half].double(), x_THD[..., 2 * half :]
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned.to(x_THD.dtype), rest], -1)


def _layer(layer, hidden_TE, attend):
    rows = hidden_TE.shape[0]
    normed_TE = layer.input_layernorm(hidden_TE)
    if hasattr(layer, "attention"):  # GPT-NeoX
        attention = layer.attention
        qkv_TH3D = attention.query_key_value(normed_TE).view(rows, -1, 3 * attention.head_size)
        attended_TE = attention.dense(attend(*qkv_TH3D.chunk(3, dim=-1)).reshape(rows, -1))
        if layer.use_parallel_residual:
            return hidden_TE + attended_TE + layer.mlp(layer.post_attention_layernorm(hidden_TE))
        middle_TE = hidden_TE + attended_TE
        return middle_TE + layer.mlp(layer.post_attention_layernorm(middle_TE))
    attention = layer.self_attn
    q, k, v = (
        project(normed_TE).view(rows, -1, attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    middle_TE = hidden_TE + attention.o_proj(attend(q, k, v).reshape(rows, -1))
    return middle_TE + layer.mlp(layer.post_attention_layernorm(middle_TE))


def _layers(model):
    return model.base_model.layers


def _embedding(model):
    return model.get_input_embeddings()


def _head(model, hidden_TE):
    base = model.base_model
    norm = base.final_layer_norm if hasattr(base, "final_layer_norm") else base.norm
    return model.get_output_embeddings()(norm(hidden_TE))


def _device(model):
    return _embedding(model).weight.device
