"""Fills a cache with many tokens at once where a recurrent layer would read them chunk by chunk, in a loop."""

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from workers.engines.eager.score import skim
from workers.rehearsal.stand_in import CUDA

#: Read as they are. What a longer text adds to a state is nothing.
_READ = 256
#: What these layers hold of a longer text follows from what they hold of a short one.
_STRETCHED = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
)


def is_recurrent(cache: Cache | None) -> bool:
    """Whether some layer keeps a state that is made token by token."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in getattr(cache, "layers", ()))


def fill(model: PreTrainedModel, cache: Cache, batch_size: int, tokens: int) -> None:
    """Read `tokens` tokens into `cache`, without memory. A recurrent model reads the first ones; the rest is as long."""
    layers = cache.layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    read = max([_READ, *(2 * window for window in windows)])
    quick = is_recurrent(cache) and tokens > read and all(type(layer) in _STRETCHED for layer in layers)
    count = read if quick else tokens
    ids_BT = torch.empty(batch_size, count, dtype=torch.int64, device=CUDA)
    skim([(model, cache)], ids_BT, count)
    if not quick:
        return
    for layer in layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens
        elif isinstance(layer, DynamicLayer):
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(layer, name, held.new_empty((*held.shape[:2], tokens, held.shape[3])))
