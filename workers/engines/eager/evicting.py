"""A cache layer that keeps a number of tokens by a score: what the policies `tova` and `keydiff` share.

A pass reads what was kept and its own tokens; afterwards the layer drops all but `budget` of them. Keys stay rotated at the
positions of the text, and kept tokens stay in its order. B batch, K key/value heads, C tokens in the layer, D numbers of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from workers.engines.session import ModeUnsupported
from workers.models.config import one_line
from workers.modes import Context


class EvictingLayer(DynamicLayer):
    """Keys and values [B, K, C, D]; C is `budget` at most between two passes.

    `get_mask_sizes` gives kept tokens the places right before the new ones, so a causal mask shows them to every query.
    """

    is_croppable = False

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget = budget
        self.seen = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += key_states.shape[2]
        keys, values = super().update(key_states, value_states)
        return keys, values

    def keep(self, score_BKC: torch.Tensor) -> None:
        """Drop all tokens but the `budget` of highest score. `score_BKC` [B, K or 1, C]."""
        if score_BKC.shape[2] <= self.budget:
            return
        kept_BKN = score_BKC.topk(self.budget, dim=2).indices.sort(dim=2).values
        for name in ("keys", "values"):
            held_BKCD = getattr(self, name)
            index = kept_BKN[..., None].expand(*held_BKCD.shape[:2], -1, held_BKCD.shape[3])
            setattr(self, name, held_BKCD.gather(2, index))

    def get_seq_length(self) -> int:
        """Return the tokens seen, not those kept: the position of the next one."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = self.keys.shape[2] if self.is_initialized else 0
        return kept + query_length, self.seen - kept


class EvictingCache(Cache):
    """Evicting layers where the model attends to every token; what transformers keeps of the other layers."""

    layers: list[Any]

    def __init__(self, layers: Sequence[Any], budget: int) -> None:
        super().__init__(layers=list(layers))
        self._budget = budget

    @property
    def context(self) -> Context:
        """How many tokens a query sees besides itself and those of its own pass. None of them is a sink by its place."""
        return Context(0, self._budget)


@contextmanager
def evicting(model: PreTrainedModel, layer: type[EvictingLayer], budget: int) -> Iterator[EvictingCache]:
    """Yield a cache whose layers without a window of their own are of the class `layer`.

    Raises `ModeUnsupported` where transformers gives the model no such layer.
    """
    try:
        own = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    except Exception as error:  # some configs lack what it reads
        raise ModeUnsupported(
            f"{type(model).__name__}: transformers makes no cache for it: {one_line(error)}"
        ) from error
    layers = [layer(budget) if type(each) is DynamicLayer else each for each in own]
    if not any(isinstance(each, EvictingLayer) for each in layers):
        raise ModeUnsupported(
            f"{type(model).__name__} cannot evict: none of its layers keeps every token as keys and values"
        )
    yield EvictingCache(layers, budget)
