"""The streaming cache as transformers' `Cache`: S sinks, then a ring of slots (`workers.engines.shared.slots`).

N = batch x key/value heads, Q new tokens, D numbers per head.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from workers.engines.shared.slots import RingSlots, Span
from workers.modes import Context


class RingLayer(CacheLayerMixin):
    """One layer's keys and values, both [N, S + P, D], allocated once. Keys are stored rotated at their own position.

    `update` returns what a model caches as it comes, not rotated: keys and values, or latents from which it expands them
    (MLA). The attention rotates keys together with the queries, and then calls `write`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, slots: RingSlots) -> None:
        super().__init__()
        self.slots = slots
        self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate zeros. A slot that was never written is read under a mask of -inf, which NaN would survive.

        `key_states`, `value_states` [N, Q, D].
        """
        self.keys = key_states.new_zeros(len(key_states), self.slots.total, key_states.shape[2])
        self.values = value_states.new_zeros(len(value_states), self.slots.total, value_states.shape[2])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += key_states.shape[2]
        return key_states, value_states

    def write(self, spans: list[Span], k_NQD: torch.Tensor, v_NQD: torch.Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(k_NQD, v_NQD)
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


def constant_layer(model: PreTrainedModel, layer: int) -> Any:
    """What transformers keeps of a layer that does not attend: a state, or nothing."""
    return DynamicCache(config=model.config.get_text_config(decoder=True)).layers[layer]


class StreamingCache(Cache):
    """The streaming cache of one model: `S + W + 1 + slack` tokens, at any length; of layers with a window of their own,
    that window; of layers with a state, the state."""

    layers: list[Any]

    def __init__(self, slots: RingSlots, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self.slots = slots

    @property
    def context(self) -> Context:
        """What a query sees, read from the slots in use."""
        return Context(self.slots.sinks, self.slots.window)
