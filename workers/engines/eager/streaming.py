"""StreamingLLM (Xiao et al., arXiv:2309.17453) inside transformers: S sinks, W cached window tokens, and the query.

Positions are relative to the cache. Rotary embeddings depend on distances only, so this differs from absolute positions
for the sinks alone. A key is rotated once, when it is written, at its absolute position. A query at t is scored twice: as
at t against the window, and as at min(t, S + W) against the sinks. No key is rotated again, so several new tokens in one
forward (verification, chunked prefill) follow the same rule as one.

Within `streams`, transformers' own model runs with rings as its cache, with the attention of this module, and without its
own rotation, which rounds angles to float32 and knows one position per query. Eager decoding is bound by launches. So what
layers of one kind share is computed once a forward, and each layer rotates both kinds of query and the key in one operation.
A layer with a window of its own keeps that window and no sinks.

B batch, K key/value heads, G query heads per key/value head, H = K * G, N = B * K, Q new tokens, C slots,
M = (2 * G + 1) * Q rows to rotate, D numbers per head, R of them rotated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from workers.engines.eager.admission import Admission, LayerRule, rules_of
from workers.engines.eager.rerouted import Rotation, attentions_of, rerouted, turned_at_once
from workers.engines.eager.ring import RingLayer, StreamingCache, constant_layer
from workers.engines.eager.weigh import weigh
from workers.engines.shared.rope import working
from workers.engines.shared.slots import RingSlots, Span

#: What `config._attn_implementation` reads while a model streams.
ATTENTION = "streaming"


class SharedByLayers:
    """What layers of one kind share in a forward. All rows of a batch stand at the same position."""

    def __init__(self, slots: RingSlots, rule: LayerRule, dtype: torch.dtype) -> None:
        self.slots = slots
        self.rope = rule.rope
        self.rotary = rule.rotary
        self.scores_twice = slots.sinks > 0 and rule.rope is not None
        self.spans: list[Span] = []
        self._dtype = dtype
        self._position_Q: torch.Tensor
        self._bias_QC: torch.Tensor  # 0 where a query may see the slot, -inf where not
        self._by_groups: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]] = {}

    def begin(self, seen: int, count: int, device: torch.device) -> None:
        """For `count` new tokens behind `seen`."""
        self._by_groups.clear()
        self._position_Q = torch.arange(seen, seen + count, device=device)
        visible_QC = self.slots.visible(self._position_Q, seen + count)
        self._bias_QC = torch.zeros(visible_QC.shape, dtype=working(self._dtype), device=device)
        self._bias_QC.masked_fill_(~visible_QC, -torch.inf)
        self.spans = self.slots.spans(seen, count)

    def of_groups(self, groups: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """The bias [G * Q, C], or [1, C], which broadcasts; cos and sin [M, R] of what `attend` rotates, where it does."""
        if groups not in self._by_groups:
            near_Q = self._position_Q
            tables = None
            if self.rope is not None:
                far = [near_Q.clamp(max=self.slots.far_limit)] * groups if self.scores_twice else []
                tables = self.rope.tables(torch.cat([*[near_Q] * groups, *far, near_Q]), self._dtype)
            bias = self._bias_QC if len(near_Q) == 1 else self._bias_QC.repeat(groups, 1)
            self._by_groups[groups] = bias, tables
        return self._by_groups[groups]


class PassBegins(nn.Module):
    """Replaces a model's rotary embedding, which runs before the layers, once for each kind of angles. It rotates nothing."""

    def __init__(self, cache: StreamingCache, shared: list[SharedByLayers | None], rules: Admission) -> None:
        super().__init__()
        self.cache = cache
        self.shared = shared
        self.rules = rules

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, *which: Any, **named: Any) -> Any:
        seen = self.cache.get_seq_length()
        asked = (*which, *named.values())
        for shared in {id(shared): shared for shared in self.shared if shared is not None}.values():
            if shared.rotary == asked:
                shared.begin(seen, position_ids.shape[-1], x.device)
        if not self.rules.movers:
            return x if self.rules.is_complex else (x, x)
        nothing = x.new_zeros(1, 1, self.rules.columns[asked])
        return torch.complex(nothing + 1, nothing) if self.rules.is_complex else (nothing + 1, nothing)

    def unrotated(self, own: Rotation) -> Rotation:
        """Instead of a model's own rotation. One that also moves numbers is called, with angles of zero."""

        def same(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return x

        def both_same(
            q: torch.Tensor, k: torch.Tensor, *_: Any, **__: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return q, k

        if own in self.rules.movers:
            return own
        return same if turned_at_once(own) == 1 else both_same


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values, and attend over the ring. Return [B, Q, H, D].

    `query` [B, H, Q, D], `key`, `value` [B, K, Q, D]: of the new tokens, not rotated.
    """
    passing: PassBegins = module.streaming
    shared = passing.shared[module.layer_idx]
    assert shared is not None
    layer = passing.cache.layers[module.layer_idx]
    batch, heads, count, dim = query.shape
    groups = heads // key.shape[1]
    rows, queries = groups * count, groups * count * (2 if shared.scores_twice else 1)
    q_NMD, k_NQD = query.reshape(-1, rows, dim), key.reshape(-1, count, dim)
    bias, tables = shared.of_groups(groups)
    if shared.rope is not None:
        assert tables is not None
        x_NMD = torch.cat([q_NMD, q_NMD, k_NQD] if shared.scores_twice else [q_NMD, k_NQD], 1)
        shared.rope.rotate_(x_NMD, *tables)
        q_NMD, k_NQD = x_NMD.narrow(1, 0, queries), x_NMD.narrow(1, queries, count)
    layer.write(shared.spans, k_NQD, value.reshape(-1, count, value.shape[3]))

    scores_NMC = _scores(q_NMD, layer.keys)
    near_NMC = scores_NMC.narrow(1, 0, rows)
    if shared.scores_twice:
        sinks = shared.slots.sinks
        near_NMC.narrow(2, 0, sinks).copy_(scores_NMC.narrow(1, rows, rows).narrow(2, 0, sinks))
    scale = dim**-0.5 if scaling is None else scaling
    weights_NMC = weigh(near_NMC, bias, batch, scale, softcap, s_aux).to(value.dtype)
    out_NMD = torch.bmm(weights_NMC, layer.values)
    return out_NMD.view(batch, heads, count, -1).transpose(1, 2).contiguous(), None


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

    Raises `ModeUnsupported` where the model cannot stream.
    """
    rules = rules_of(model)
    of_kind: dict[Any, SharedByLayers] = {}
    shared = [None if rule is None else _shared(rule, slots, model.dtype, of_kind) for rule in rules.layers]
    layers = [
        constant_layer(model, index) if each is None else RingLayer(each.slots)
        for index, each in enumerate(shared)
    ]
    cache = StreamingCache(slots, layers)
    begins = PassBegins(cache, shared, rules)
    with rerouted(model, begins, begins.unrotated, ATTENTION, begins), _near_positions(model, rules, slots):
        yield cache


@contextmanager
def _near_positions(model: PreTrainedModel, rules: Admission, slots: RingSlots) -> Iterator[None]:
    """Within the context, layers that scale their queries by position, and have no window, are told the position relative to
    the cache."""

    def clamped(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, "position_ids": named["position_ids"].clamp(max=slots.far_limit)}

    hooks = [
        module.register_forward_pre_hook(clamped, with_kwargs=True)
        for module in attentions_of(model)
        if (rule := rules.layers[module.layer_idx]) is not None and rule.scaled and rule.window is None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shared(
    rule: LayerRule, slots: RingSlots, dtype: torch.dtype, of_kind: dict[Any, SharedByLayers]
) -> SharedByLayers:
    kind = (rule.window, rule.rotary, rule.rope is None)
    if kind not in of_kind:
        own = slots if rule.window is None else RingSlots(0, rule.window - 1, slots.slack)
        of_kind[kind] = SharedByLayers(own, rule, dtype)
    return of_kind[kind]
