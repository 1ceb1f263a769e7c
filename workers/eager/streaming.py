"""StreamingLLM (Xiao et al., arXiv:2309.17453) inside transformers: S sinks, W cached window tokens, and the query.

Positions are relative to the cache. RoPE being relative, that differs from absolute positions for the sinks only:
a key is rotated once, when written, at its absolute position t, and a query is scored twice: as at t against the
window, as at min(t, S + W) against the sinks. No key is ever rotated again, so several new tokens in one forward
(verification, chunked prefill) obey the same rule as one.

Three points of transformers are used: the rotary embedding (angles, and all that one forward's layers share), the
cache (a ring), and the attention.

B batch, K key/value heads, G query heads per key/value head, H = K * G, N = B * K, Q new tokens, C slots,
D numbers per head, R of them rotated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from workers.eager.ring import RingCache, Slots
from workers.eager.rope import Rope
from workers.session import ModeUnsupported

#: What `config._attn_implementation` reads while a model streams.
ATTENTION = "streaming"

#: Tokens per prefill pass, unless the cell says otherwise: the slack they need is this less one.
PREFILL_CHUNK = 128

#: The families whose attention is known to rotate half-split pairs and to go through transformers' attention
#: interface, and the attribute that holds it in a layer.
_FAMILIES = {"gpt_neox": "attention", "llama": "self_attn"}


class Step:
    """What the layers of one forward share. All rows of a batch stand at the same position."""

    def __init__(self, cache: RingCache, rope: Rope, groups: int) -> None:
        self.cache = cache
        self.rope = rope
        self.groups = groups
        self.far_cos: torch.Tensor  # [G * Q, R], like far_sin
        self.far_sin: torch.Tensor
        self.bias: torch.Tensor  # [G * Q, C]

    def begin(self, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin [1, Q, R] of the next `count` positions."""
        slots, seen = self.cache.slots, self.cache.get_seq_length()
        position_Q = torch.arange(seen, seen + count, dtype=torch.float64, device=device)
        nearer_Q = position_Q.clamp(max=slots.sinks + slots.window)
        cos_2QR, sin_2QR = self.rope.tables(position_Q, nearer_Q - position_Q)
        hidden_QC = slots.hidden(seen, count, device)
        bias_QC = torch.zeros(hidden_QC.shape, dtype=self.rope.dtype, device=device)
        bias_QC.masked_fill_(hidden_QC, -torch.inf)
        self.far_cos, self.far_sin, self.bias = map(self._per_group, (cos_2QR[1], sin_2QR[1], bias_QC))
        if self.rope.scaling == 1.0:
            return cos_2QR[:1], sin_2QR[:1]
        return cos_2QR[:1] * self.rope.scaling, sin_2QR[:1] * self.rope.scaling

    def _per_group(self, x: torch.Tensor) -> torch.Tensor:
        """[Q, ...] -> [G * Q, ...]; a single query's row broadcasts."""
        return x if self.groups == 1 or len(x) == 1 else x.repeat(self.groups, 1)


class StreamingRotary(nn.Module):
    """Stands in for a model's rotary embedding, which runs once per forward, before the layers.

    Its angles are the cache's positions, in float32 whatever `x` is, so that queries and keys stay unrounded.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.step.begin(position_ids.shape[-1], x.device)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """`query` [B, H, Q, D], rotated, unrounded; `key`, `value` [B, K, C, D]: the ring. Returns [B, Q, H, D].

    In eager mode a launch costs more than what it computes: hence one product for both rotations of the queries.
    """
    step: Step = module.streaming
    batch, heads, count, dim = query.shape
    slots, sinks, rows = key.shape[2], step.cache.slots.sinks, step.groups * count
    q_NMD = query.reshape(-1, rows, dim)
    if sinks:
        q_NMD = torch.cat([q_NMD, q_NMD], 1)
        far_NMR = q_NMD.narrow(1, rows, rows).narrow(2, 0, step.far_cos.shape[1])
        swapped_NMR = far_NMR.roll(far_NMR.shape[2] // 2, 2)
        far_NMR.copy_(torch.addcmul(far_NMR * step.far_cos, swapped_NMR, step.far_sin))
    scores_NMC = _scores(q_NMD.to(key.dtype), key.view(-1, slots, dim))
    near_NMC = scores_NMC.narrow(1, 0, rows)
    if sinks:
        near_NMC.narrow(2, 0, sinks).copy_(scores_NMC.narrow(1, rows, rows).narrow(2, 0, sinks))
    weights_NMC = torch.add(step.bias, near_NMC, alpha=scaling).softmax(-1).to(value.dtype)
    out_NMD = torch.bmm(weights_NMC, value.view(-1, slots, value.shape[3]))
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


def check(model: PreTrainedModel) -> None:
    """Raises `ModeUnsupported`, naming what the architecture lacks."""
    if model.config.model_type in _FAMILIES:
        Rope.of(model)
        return
    missing = (
        "its attention has not been shown to rotate as these do"
        if hasattr(model.base_model, "rotary_emb")
        else "it has no rotary embedding (`rotary_emb`), through which positions are made relative to the cache"
    )
    raise ModeUnsupported(f"{type(model).__name__} cannot stream: {missing} (works: {', '.join(_FAMILIES)})")


@contextmanager
def streams(model: PreTrainedModel, slots: Slots) -> Iterator[RingCache]:
    """Within the context, forwards of `model` given the yielded cache stream; afterwards the model is as before."""
    check(model)
    config, base = model.config, model.base_model
    attentions = [getattr(layer, _FAMILIES[config.model_type]) for layer in base.layers]
    cache = RingCache(slots, len(attentions))
    key_value_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    step = Step(cache, Rope.of(model), config.num_attention_heads // key_value_heads)

    rotary, implementation = base.rotary_emb, config._attn_implementation
    base.rotary_emb = StreamingRotary(step)
    config._attn_implementation = ATTENTION
    for attention in attentions:
        attention.streaming = step
    try:
        yield cache
    finally:
        base.rotary_emb = rotary
        config._attn_implementation = implementation
        for attention in attentions:
            del attention.streaming
