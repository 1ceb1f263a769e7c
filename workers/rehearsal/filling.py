"""Fills a cache with many tokens at once: without a loop over chunks in recurrent layers, without a forward where it is known
what a forward would leave.
"""

from typing import NamedTuple

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
from workers.rehearsal.storages import StorageLog

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


def does_grow(cache: Cache | None) -> bool:
    """Whether some layer may keep more of a longer text: false of states alone."""
    return any(type(layer) is not LinearAttentionLayer for layer in getattr(cache, "layers", (None,)))


#: Of these layers one forward tells what any other leaves.
_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)
#: Rotations whose tables are made anew at some lengths.
_CHANGING = ("dynamic", "longrope")


class _Left(NamedTuple):
    """What a forward left in one layer: heads and numbers per head of its keys and of its values."""

    keys: tuple[int, int]
    values: tuple[int, int]
    dtype: torch.dtype


class Filling:
    """Fills the caches of a rehearsal's models. `log`: of the rehearsal."""

    def __init__(self, log: StorageLog) -> None:
        self._log = log
        self._left: dict[int, list[_Left | None]] = {}  # by the model's id: it lives as long as the rehearsal

    def fill(self, model: PreTrainedModel, cache: Cache, batch_size: int, tokens: int) -> None:
        """Let `cache` be as if the model had read `tokens` tokens at once, in a new cache."""
        left = self._left.get(id(model))
        if left is None or len(left) != len(cache.layers):
            _read(model, cache, batch_size, tokens)
            if _is_plain(model, cache):
                self._left[id(model)] = [_left(layer) for layer in cache.layers]
            return
        for layer, one in zip(cache.layers, left, strict=True):
            if one is not None:
                layer.update(
                    *(
                        torch.empty(batch_size, heads, tokens, numbers, dtype=one.dtype, device=CUDA)
                        for heads, numbers in (one.keys, one.values)
                    )
                )
        if self._log.workspace_bytes:
            self._log.take_workspace()


def _is_plain(model: PreTrainedModel, cache: Cache) -> bool:
    rotation = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", ""))
    return all(type(layer) in _PLAIN for layer in cache.layers) and not any(
        name in rotation for name in _CHANGING
    )


def _left(layer: DynamicLayer) -> _Left | None:
    if not layer.is_initialized:
        return None
    keys, values = ((held.shape[1], held.shape[3]) for held in (layer.keys, layer.values))
    return _Left(keys, values, layer.keys.dtype)


def _read(model: PreTrainedModel, cache: Cache, batch_size: int, tokens: int) -> None:
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
        elif isinstance(layer, DynamicLayer) and layer.is_initialized:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(layer, name, held.new_empty((*held.shape[:2], tokens, held.shape[3])))
