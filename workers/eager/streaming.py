"""StreamingLLM (Xiao et al., arXiv:2309.17453) inside transformers: S sinks, W cached window tokens, and the query.

Positions are relative to the cache. RoPE being relative, that differs from absolute positions for the sinks only:
a key is rotated once, when written, at its absolute position, and each query twice: at its own position t for the
window, at min(t, S + W) for the sinks. Nothing is ever rotated again, so several new tokens in one forward
(verification, chunked prefill) obey the same rule as one.

B batch, K key/value heads, G query heads per key/value head, H = K * G, Q new tokens, C slots, D numbers per head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from workers.eager.ring import RingCache, Slots, Span
from workers.eager.rope import NoRotation, Rope, rotate_
from workers.session import ModeUnsupported

#: What `config._attn_implementation` reads while a model streams.
ATTENTION = "streaming"

#: Tokens per prefill pass, unless the cell says otherwise: the slack they need is this less one.
PREFILL_CHUNK = 128

#: How to take the rotation out of a family's attention: the attribute that holds a layer's attention, and whether
#: its rotary embedding may have zero width (GPT-NeoX slices by it; Llama multiplies whole heads).
_FAMILIES = {"gpt_neox": ("attention", True), "llama": ("self_attn", False)}


class Step:
    """What all layers of one forward share: angles, mask, slots. Computed once per forward, by the first layer."""

    def __init__(self, cache: RingCache, rope: Rope, groups: int) -> None:
        self.cache = cache
        self.rope = rope
        # Rows of the angle tables: G near queries, G far ones (none without sinks), the key. On the device, for an
        # index that comes from the host would make it wait at every step.
        far = [1] * groups if cache.slots.sinks else []
        self.rows = torch.tensor([0] * groups + far + [0], device=rope.inv_freq_F.device)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.bias_QC: torch.Tensor
        self.spans: list[Span]

    def begin(self, count: int, device: torch.device) -> None:
        """`count` new tokens, already counted by the first layer."""
        slots = self.cache.slots
        head = self.cache.get_seq_length()
        position_Q = torch.arange(head - count, head, device=device)
        far_Q = position_Q.clamp(max=slots.sinks + slots.window)
        cos, sin = self.rope.tables(torch.cat([position_Q, far_Q]).double())
        self.cos = cos.view(2, count, -1)[self.rows]
        self.sin = sin.view(2, count, -1)[self.rows]
        self.spans = slots.spans(head - count, count)
        self.bias_QC = _bias(slots, head, position_Q, self.rope.dtype)


def _bias(slots: Slots, head: int, position_Q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[Q, C]: 0 where the query may see the slot, -inf where not."""
    position_C = slots.positions(head, position_Q.device)
    age_QC = position_Q[:, None] - position_C
    in_window_QC = (age_QC <= slots.window) & (position_C >= slots.sinks)
    in_window_QC[:, : slots.sinks] = True
    hidden_QC = ~(in_window_QC & (age_QC >= 0))
    return torch.zeros_like(age_QC, dtype=dtype).masked_fill_(hidden_QC, -torch.inf)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """`query` [B, H, Q, D], `key`, `value` [B, K, Q, D]: the new tokens' own, un-rotated. Returns [B, Q, H, D]."""
    step: Step = module.streaming
    layer = step.cache.layers[module.layer_idx]
    batch, kv_heads, count, dim = key.shape
    groups = query.shape[1] // kv_heads
    sinks = step.cache.slots.sinks
    if module.layer_idx == 0:
        step.begin(count, query.device)

    q_BKGQD = query.view(batch, kv_heads, groups, count, dim)
    queries = [q_BKGQD, q_BKGQD] if sinks else [q_BKGQD]
    x_BKnQD = rotate_(torch.cat([*queries, key[:, :, None]], 2), step.cos, step.sin)
    layer.write(step.spans, x_BKnQD[:, :, -1], value)

    heads = batch * kv_heads
    keys_NCD = layer.keys.view(heads, -1, dim)
    near_NMC = _scores(x_BKnQD[:, :, :groups].reshape(heads, -1, dim), keys_NCD)
    if sinks:
        far_NMD = x_BKnQD[:, :, groups : 2 * groups].reshape(heads, -1, dim)
        near_NMC[:, :, :sinks] = _scores(far_NMD, keys_NCD[:, :sinks])
    scores_NGQC = torch.add(step.bias_QC, near_NMC.view(heads, groups, count, -1), alpha=scaling)
    weights_NMC = scores_NGQC.softmax(-1).to(value.dtype).view(heads, groups * count, -1)
    out_NMD = torch.bmm(weights_NMC, layer.values.view(heads, -1, value.shape[-1]))
    out_BQKGD = out_NMD.view(batch, kv_heads, groups, count, -1).permute(0, 3, 1, 2, 4)
    return out_BQKGD.reshape(batch, count, kv_heads * groups, -1), None


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
        "its attention has no entry that says how"
        if hasattr(model.base_model, "rotary_emb")
        else "it has no rotary embedding (`rotary_emb`) of its own"
    )
    raise ModeUnsupported(
        f"streaming takes the rotation of positions out of the attention; {type(model).__name__} cannot stream: "
        f"{missing} (what works: {', '.join(_FAMILIES)})"
    )


@contextmanager
def streams(model: PreTrainedModel, slots: Slots) -> Iterator[RingCache]:
    """Within the context, forwards of `model` given the yielded cache stream; afterwards the model is as before."""
    check(model)
    rope = Rope.of(model)
    config, base = model.config, model.base_model
    attention_name, zero_width = _FAMILIES[config.model_type]
    attentions = [getattr(layer, attention_name) for layer in base.layers]
    cache = RingCache(slots, len(attentions))
    key_value_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    step = Step(cache, rope, config.num_attention_heads // key_value_heads)

    rotary, implementation = base.rotary_emb, config._attn_implementation
    base.rotary_emb = NoRotation(0 if zero_width else 2 * len(rope.inv_freq_F))
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
