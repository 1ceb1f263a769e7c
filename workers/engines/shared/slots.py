"""Which slot of a ring cache holds which position.

The streaming cache (StreamingLLM, arXiv:2309.17453) has S slots for the sinks, then a ring of P slots that are written
in turn. All of it is arithmetic on one counter, the number of tokens written: there are no index tables, and a rejected
draft token is rolled back by not advancing the counter.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Span(NamedTuple):
    """`length` neighbouring new tokens, from the `offset`-th on, go to neighbouring slots from `slot` on."""

    slot: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RingSlots:
    """The slots of one ring cache.

    `sinks` S: the first tokens, kept for ever. `window` W: cached tokens before the query that it sees. `slack`: further
    slots; a pass may write `slack + 1` tokens before the first of them loses a key that it sees.
    A rejected token at position p has overwritten position p - P, which no later query sees.
    """

    sinks: int
    window: int
    slack: int

    @property
    def sliding_window(self) -> int:
        """W + 1, as configs of models count it: a query sees itself and the W tokens before it."""
        return self.window + 1

    @property
    def slots(self) -> int:
        """P, the slots of the ring alone."""
        return self.window + 1 + self.slack

    @property
    def total(self) -> int:
        """S + P."""
        return self.sinks + self.slots

    @property
    def far_limit(self) -> int:
        """The largest position of a query relative to the sinks: at position t it is min(t, S + W)."""
        return self.sinks + self.window

    @property
    def longest_pass(self) -> int:
        """The most tokens that one pass may write."""
        return self.slack + 1

    def slot(self, position: Any) -> Any:
        """The slot of `position`. An int, or a tensor elementwise."""
        wrapped = self.sinks + (position - self.sinks) % self.slots
        if isinstance(position, int):
            return position if position < self.sinks else wrapped
        return torch.where(position < self.sinks, position, wrapped)

    def held(self, slot: Any, written: Any) -> Any:
        """The position that `slot` holds after `written` tokens. A ring slot below S: it was never written.

        Exact for every position that a query may see. A slot that holds a rejected token reads as what it held before.
        """
        last = written - 1 - self.sinks
        wrapped = self.sinks + last - (last - (slot - self.sinks)) % self.slots
        if isinstance(slot, int):
            return slot if slot < self.sinks else wrapped
        return torch.where(slot < self.sinks, slot, wrapped)

    def visible(self, position_Q: torch.Tensor, written: Any) -> torch.Tensor:
        """[Q, S + P] bool: the slots that the query at each position sees, once `written` tokens are in the ring."""
        slot_C = torch.arange(self.total, device=position_Q.device)
        held_C = self.held(slot_C, written)
        is_sink_C = slot_C < self.sinks
        age_QC = position_Q[:, None] - held_C
        return (age_QC >= 0) & (is_sink_C | ((held_C >= self.sinks) & (age_QC <= self.window)))

    def spans(self, first: int, count: int) -> list[Span]:
        """The slots of positions `first .. first + count - 1`, as runs of neighbours. `count` <= `longest_pass`."""
        spans = []
        offset = 0
        while offset < count:
            slot = self.slot(first + offset)
            room = (self.sinks if slot < self.sinks else self.total) - slot
            span = Span(slot, offset, min(room, count - offset))
            spans.append(span)
            offset += span.length
        return spans
