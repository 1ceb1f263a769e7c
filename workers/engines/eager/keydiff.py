"""KeyDiff (Park et al., arXiv:2504.15364): of each head, keep the tokens whose keys are least like the others.

The score of a key is its cosine with the mean direction of all keys in sight, negated. It needs no query, so the model's own
attention reads the cache. Each key/value head keeps tokens of its own.
"""

import torch
from torch.nn import functional

from workers.engines.eager.evicting import EvictingLayer


class KeyDiffLayer(EvictingLayer):
    """Drops when a pass begins to attend: its queries still see all, and what stays is known from the keys alone."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states)
        self.keep(scores(keys))
        return keys, values


def scores(k_BKCD: torch.Tensor) -> torch.Tensor:
    """[B, K, C] in float32 at least."""
    direction_BKCD = functional.normalize(k_BKCD.to(torch.promote_types(k_BKCD.dtype, torch.float32)), dim=3)
    return -functional.cosine_similarity(direction_BKCD, direction_BKCD.mean(2, keepdim=True), dim=3)
