"""A ring with slack: the streaming cache's memory, and the arithmetic of which position lies where.

B batch, K key/value heads, G query heads per key/value head, Q new tokens, C = S + P slots, D numbers per head.
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

    def positions(self, head: int, device: torch.device) -> torch.Tensor:
        """[S + P] int64: the position each slot holds after `head` tokens; a ring slot's value < S = never written.

        Slots of sinks answer their own index, written or not.
        """
        slot_C = torch.arange(self.total, device=device)
        last = head - 1 - self.sinks
        turn_C = slot_C - self.sinks
        return torch.where(turn_C < 0, slot_C, head - 1 - (last - turn_C) % self.ring)


class RingLayer(CacheLayerMixin):
    """One layer's keys and values, both [B, K, S + P, D], allocated once. Keys lie rotated at their own position.

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
        batch, heads, _, dim = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.slots.total, dim)
        self.values = value_states.new_zeros(batch, heads, self.slots.total, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        return key_states, value_states

    def write(self, spans: list[Span], k_BKQD: torch.Tensor, v_BKQD: torch.Tensor) -> None:
        for slot, offset, length in spans:
            self.keys[:, :, slot : slot + length] = k_BKQD[:, :, offset : offset + length]
            self.values[:, :, slot : slot + length] = v_BKQD[:, :, offset : offset + length]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens: a value <= 0, on the device in transformers 5.17."""
        self.seen += int(tokens_to_remove)

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


def cache_bytes(caches: list[Cache]) -> int:
    """Bytes of the storages behind the caches' keys and values; a view of a larger tensor keeps all of it alive."""
    layers = [layer for cache in caches for layer in cache.layers if layer.is_initialized]
    storages = [tensor.untyped_storage() for layer in layers for tensor in (layer.keys, layer.values)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
