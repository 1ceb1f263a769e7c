"""The streaming cache: S sinks, then a ring of P = R + slack slots, R = W + 1 (streaming.md, sections 1 and 2).

Which position a slot holds is arithmetic on one counter, so there are no index tables, and rolling back a
rejected draft is not advancing the counter. Window keys are rotated once, at their absolute position; sink
keys at 0 .. S - 1; nothing is ever rotated again. StreamingLLM: arXiv:2309.17453.
"""

from dataclasses import dataclass
from typing import Any

import torch

from workers.engines.graph.weights import Weights

#: Drafted tokens of a round and the prefill chunk both fit the slack. One value for plain and speculative
#: decoding: the same keys in the same slots, hence the same sums, bit for bit.
SLACK = 127


@dataclass(frozen=True, slots=True)
class Ring:
    """`sinks` S; `reach` R: a query sees itself and the R - 1 tokens before it; `slots` P."""

    sinks: int
    reach: int
    slots: int

    @property
    def far_limit(self) -> int:
        """A query's place as the sinks see it: min(position, S + R - 1)."""
        return self.sinks + self.reach - 1

    @property
    def longest_pass(self) -> int:
        """Tokens that may be read in one pass before the first of them loses a key it may see."""
        return self.slots - self.reach + 1

    def slot(self, position: Any) -> Any:
        """Where the key of `position` lives (an int, or a tensor elementwise)."""
        wrapped = self.sinks + (position - self.sinks) % self.slots
        if isinstance(position, int):
            return position if position < self.sinks else wrapped
        return torch.where(position < self.sinks, position, wrapped)

    def held(self, slot: Any, written: Any) -> Any:
        """The position that `slot` holds once `written` tokens were written; a ring slot below S: never written.

        Exact for every position a query may see; slots that hold a rejected draft read as what they held before.
        """
        last = written - 1 - self.sinks
        wrapped = self.sinks + last - (last - (slot - self.sinks)) % self.slots
        if isinstance(slot, int):
            return slot if slot < self.sinks else wrapped
        return torch.where(slot < self.sinks, slot, wrapped)


def ring_of(sinks: int, window: int, gamma: int) -> Ring:
    return Ring(sinks, window + 1, window + 1 + max(gamma, SLACK))


class RingCache:
    """k and v [L, B, K, S + P, D], allocated once. A slot never written reads as zeros, which no query sees."""

    def __init__(self, weights: Weights, batch: int, ring: Ring) -> None:
        self.ring = ring
        shape = (len(weights.layers), batch, weights.kv_heads, ring.sinks + ring.slots, weights.head_dim)
        self.k_LBKCD = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self.v_LBKCD = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self.arrived = torch.zeros(batch * weights.kv_heads * 16, dtype=torch.int32, device=weights.device)

    @property
    def far_limit(self) -> int:
        return self.ring.far_limit

    @property
    def longest_pass(self) -> int:
        return self.ring.longest_pass

    def reserve(self, tokens: int) -> None:
        """Room for any number of tokens is there from the start."""

    def nbytes(self) -> int:
        return self.k_LBKCD.nbytes + self.v_LBKCD.nbytes

    def clear(self) -> None:
        """Nothing to give back; what is stale is told from the counter."""
