"""StreamingLLM (Xiao et al., arXiv:2309.17453) inside transformers: S sinks, W cached window tokens, and the query.

Positions are relative to the cache. Rotary embeddings depend on distances only, so this differs from absolute positions
for the sinks alone. A key is rotated once, when it is written, at its absolute position. A query at t is scored twice: as
at t against the window, and as at min(t, S + W) against the sinks. No key is rotated again, so several new tokens in one
forward (verification, chunked prefill) follow the same rule as one.

Within `streams`, transformers' own model runs with a ring as its cache, with the attention of this module, and without its
own rotation, which rounds angles to float32 and knows one position per query. Eager decoding is bound by launches. So what
the layers of a forward share is computed once, and each layer rotates both kinds of query and the key in one operation.

B batch, K key/value heads, G query heads per key/value head, H = K * G, N = B * K, Q new tokens, C slots,
M = (2 * G + 1) * Q rows to rotate, D numbers per head, R of them rotated.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from workers.engines.eager.ring import StreamingCache
from workers.engines.eager.rope import Rope, rotate_
from workers.engines.shared.refusals import family_of
from workers.engines.shared.rope import working
from workers.engines.shared.slots import RingSlots, Span

#: What `config._attn_implementation` reads while a model streams.
ATTENTION = "streaming"


class StreamingPass:
    """What the layers of one forward share. All rows of a batch stand at the same position."""

    def __init__(self, cache: StreamingCache, rope: Rope, groups: int) -> None:
        self.cache = cache
        self.rope = rope
        self.groups = groups
        self.cos_MR: torch.Tensor
        self.sin_MR: torch.Tensor
        self.bias: torch.Tensor  # [G * Q, C]: 0 where a query may see the slot, -inf where not
        self.spans: list[Span]

    def begin(self, count: int, device: torch.device) -> None:
        """Compute what the layers share, for `count` new tokens that the cache has not seen."""
        slots, seen = self.cache.slots, self.cache.get_seq_length()
        position_Q = torch.arange(seen, seen + count, device=device)
        far_Q = position_Q.clamp(max=slots.far_limit)
        far = [far_Q] * self.groups if slots.sinks else []
        self.cos_MR, self.sin_MR = self.rope.tables(
            torch.cat([*[position_Q] * self.groups, *far, position_Q])
        )
        visible_QC = slots.visible(position_Q, seen + count)
        bias_QC = torch.zeros(visible_QC.shape, dtype=working(self.rope.dtype), device=device)
        bias_QC.masked_fill_(~visible_QC, -torch.inf)
        self.bias = bias_QC if count == 1 else bias_QC.repeat(self.groups, 1)  # one row broadcasts
        self.spans = slots.spans(seen, count)


class PassBegins(nn.Module):
    """Replaces a model's rotary embedding, which runs once per forward, before the layers. It rotates nothing."""

    def __init__(self, current: StreamingPass) -> None:
        super().__init__()
        self.current = current

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.current.begin(position_ids.shape[-1], x.device)
        return x, x


def _unrotated(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `apply_rotary_pos_emb` in the module of the model."""
    return query, key


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values, and attend over the ring. Return [B, Q, H, D].

    `query` [B, H, Q, D], `key`, `value` [B, K, Q, D]: of the new tokens, not rotated.
    """
    current: StreamingPass = module.streaming
    layer = current.cache.layers[module.layer_idx]
    batch, heads, count, dim = query.shape
    sinks, rows = layer.slots.sinks, current.groups * count
    q_NMD, k_NQD = query.reshape(-1, rows, dim), key.reshape(-1, count, dim)
    x_NMD = torch.cat([q_NMD, q_NMD, k_NQD] if sinks else [q_NMD, k_NQD], 1)
    rotate_(x_NMD, current.cos_MR, current.sin_MR)
    queries = x_NMD.shape[1] - count
    layer.write(current.spans, x_NMD.narrow(1, queries, count), value.reshape(-1, count, value.shape[3]))

    scores_NMC = _scores(x_NMD.narrow(1, 0, queries), layer.keys)
    near_NMC = scores_NMC.narrow(1, 0, rows)
    if sinks:
        near_NMC.narrow(2, 0, sinks).copy_(scores_NMC.narrow(1, rows, rows).narrow(2, 0, sinks))
    weights_NMC = torch.add(current.bias, near_NMC, alpha=scaling).softmax(-1).to(value.dtype)
    out_NMD = torch.bmm(weights_NMC, layer.values)
    return out_NMD.view(batch, heads, count, -1).transpose(1, 2), None


def _scores(q_NMD: torch.Tensor, k_NCD: torch.Tensor) -> torch.Tensor:
    """[N, M, C] in float32 at least: rounding scores to bf16 would cost 4e-3 of their size before the softmax."""
    k_NDC = k_NCD.transpose(1, 2)
    if q_NMD.dtype in (torch.float32, torch.float64):
        return torch.bmm(q_NMD, k_NDC)
    if q_NMD.is_cuda:
        return torch.bmm(q_NMD, k_NDC, out_dtype=torch.float32)
    return torch.bmm(q_NMD.float(), k_NDC.float())


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def streams(model: PreTrainedModel, slots: RingSlots) -> Iterator[StreamingCache]:
    """Within the context, forwards of `model` with the yielded cache stream. Afterwards the model is as before.

    Raises `ModeUnsupported` where the family cannot stream.
    """
    family = family_of(model, "stream")
    config, base = model.config, model.base_model
    attentions = [getattr(layer, family.attention) for layer in base.layers]
    cache = StreamingCache(slots, len(attentions))
    key_value_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    current = StreamingPass(cache, Rope.of(model), config.num_attention_heads // key_value_heads)

    modeling: Any = sys.modules[type(attentions[0]).__module__]

    rotary, rotation, implementation = (
        base.rotary_emb,
        modeling.apply_rotary_pos_emb,
        config._attn_implementation,
    )
    base.rotary_emb = PassBegins(current)
    modeling.apply_rotary_pos_emb = _unrotated
    config._attn_implementation = ATTENTION
    for attention in attentions:
        attention.streaming = current
    try:
        yield cache
    finally:
        base.rotary_emb = rotary
        modeling.apply_rotary_pos_emb = rotation
        config._attn_implementation = implementation
        for attention in attentions:
            del attention.streaming
