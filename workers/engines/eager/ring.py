"""The streaming cache as transformers' `Cache`: S sinks, then a ring of slots (`workers.engines.shared.slots`).

N = batch x key/value heads, Q new tokens, D numbers per head.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.engines.shared.slots import RingSlots, Span
from workers.modes import Context


class RingLayer(CacheLayerMixin):
    """One layer's keys and values, both [N, S + P, D], allocated once. Keys are stored rotated at their own position.

    `update` returns the new keys and values as they come, not rotated. The attention rotates them together with the
    queries, and then calls `write`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, slots: RingSlots) -> None:
        super().__init__()
        self.slots = slots
        self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate zeros. A slot that was never written is read under a mask of -inf, which NaN would survive."""
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
        """Forget the newest `-tokens_to_remove` tokens. A value <= 0; in some releases of transformers a tensor.

        Behind a prompt of one token, a draft asks for it on an empty cache too.
        """
        self.seen = max(0, self.seen + int(tokens_to_remove))

    def get_seq_length(self) -> int:
        """Return the tokens seen, not those kept: the position of the next one."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.total, 0


class StreamingCache(Cache):
    """The streaming cache of one model: `S + W + 1 + slack` tokens, at any length."""

    layers: list[RingLayer]

    def __init__(self, slots: RingSlots, num_layers: int) -> None:
        super().__init__(layers=[RingLayer(slots) for _ in range(num_layers)])
        self.slots = slots

    @property
    def context(self) -> Context:
        """What a query sees, read from the slots in use."""
        return Context(self.slots.sinks, self.slots.window)
