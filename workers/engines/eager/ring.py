"""A ring with slack: the streaming cache's memory, and the arithmetic of which position lies where.

N = batch x key/value heads, Q new tokens, C = S + P slots, D numbers per head.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class Span(NamedTuple):
    """`length` neighbouring tokens, `offset` within the new ones, go to neighbouring slots from `slot`."""

    slot: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Slots:
    """S sinks for ever, then P = W + 1 + slack slots taken in turn.

    A query sees S sinks, the W cached positions before it and itself. `slack` bounds how many tokens one forward
    may add, less one: gamma for verification, the prefill chunk less one. A rejected token at position p has
    overwritten position p - P, which no later query may see: rolling back is not advancing the counter.
    """

    sinks: int
    window: int
    slack: int

    @property
    def ring(self) -> int:
        return self.window + 1 + self.slack

    @property
    def total(self) -> int:
        return self.sinks + self.ring

    def spans(self, head: int, count: int) -> list[Span]:
        """Where the tokens at positions `head .. head + count - 1` are written, `count <= slack + 1`."""
        spans = []
        offset = 0
        while offset < count:
            position = head + offset
            if position < self.sinks:
                slot, room = position, self.sinks - position
            else:
                turn = (position - self.sinks) % self.ring
                slot, room = self.sinks + turn, self.ring - turn
            span = Span(slot, offset, min(room, count - offset))
            spans.append(span)
            offset += span.length
        return spans

    def hidden(self, seen: int, count: int, device: torch.device) -> torch.Tensor:
        """[Q, C] bool: what query `seen + q` must not see, once all `count` new tokens are written."""
        newest = seen + count - 1
        slot_C = torch.arange(self.total, device=device)
        before_C = (newest - slot_C) % self.ring  # ring slots: how many positions before the newest one
        ahead_Q1 = torch.arange(count - 1, -1, -1, device=device)[:, None]
        age_QC = before_C - ahead_Q1
        hidden_QC = (age_QC < 0) | (age_QC > self.window)
        if newest - self.sinks < self.ring:
            hidden_QC |= before_C > newest - self.sinks  # not written yet
        hidden_QC[:, : self.sinks] = slot_C[: self.sinks] > newest - ahead_Q1
        return hidden_QC


class RingLayer(CacheLayerMixin):
    """One layer's keys and values, both [N, S + P, D], allocated once. Keys lie rotated at their own position.

    `update` hands the new keys and values through as they come, un-rotated: only the attention knows the angles,
    and it rotates queries and keys in one go before it calls `write`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots
        self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Zeros, not empty: a slot that was never written is read under a mask of -inf, and NaN would survive it."""
        rows = key_states.shape[0] * key_states.shape[1]
        self.keys = key_states.new_zeros(rows, self.slots.total, key_states.shape[3])
        self.values = value_states.new_zeros(rows, self.slots.total, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        return key_states, value_states

    def write(self, spans: list[Span], k_NQD: torch.Tensor, v_NQD: torch.Tensor) -> None:
        for slot, offset, length in spans:
            self.keys.narrow(1, slot, length).copy_(k_NQD.narrow(1, offset, length))
            self.values.narrow(1, slot, length).copy_(v_NQD.narrow(1, offset, length))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens: a value <= 0, on the device in transformers 5.17.

        A draft asks an empty cache for it, too, behind a prompt of one token.
        """
        self.seen = max(0, self.seen + int(tokens_to_remove))

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens kept: the position of the next one."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.total, 0


class RingCache(Cache):
    """The streaming cache of one model: `S + W + 1 + slack` tokens, at the first token and at the millionth."""

    layers: list[RingLayer]

    def __init__(self, slots: Slots, num_layers: int) -> None:
        super().__init__(layers=[RingLayer(slots) for _ in range(num_layers)])
        self.slots = slots
