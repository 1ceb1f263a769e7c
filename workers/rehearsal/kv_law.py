"""How many bytes a model's cache takes, asked of the model itself: no list of families, no formula."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.initialization import no_init_weights

from workers.engines.eager.own_state import own_state_of
from workers.engines.eager.policies import takes_dynamic_cache
from workers.models.build import from_config
from workers.models.cache_tensors import cache_tensors
from workers.rehearsal.passes import NotRehearsable
from workers.rehearsal.stand_in import CUDA, standing_in
from workers.rehearsal.storages import StorageLog

#: Lengths are multiples of this, so that caches that keep one entry for several tokens grow evenly.
_STEP = 128
#: What a config calls the length from which on a layer keeps no more.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention_window")


@dataclass(frozen=True, slots=True)
class KvLaw:
    """Bytes of one sequence's cache after n tokens: `constant_bytes + n * bytes_per_token`, n beyond every window."""

    bytes_per_token: int
    constant_bytes: int


def kv_law(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> KvLaw:
    """Run the model of `config` over three lengths without memory, and add up every tensor of its cache.

    Of a multimodal model the text part is run. Takes about a second. Raises `NotRehearsable`.
    """
    text = config.get_text_config(decoder=True)
    window = max((getattr(text, name, None) or 0 for name in _WINDOWS), default=0)
    shortest = -(-(window + 1) // _STEP) * _STEP
    try:
        with torch.device("meta"), no_init_weights():
            model = from_config(config, dtype)
        model.eval().requires_grad_(False)
        sizes = [_cache_bytes(model, count * shortest) for count in (1, 2, 3)]
    except Exception as error:  # anything may be wrong with a config that a person names
        raise NotRehearsable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    growth = sizes[1] - sizes[0]
    if sizes[2] - sizes[1] != growth or growth % shortest:
        raise NotRehearsable(
            f"its cache is no straight line: {sizes} bytes at 1, 2 and 3 times {shortest} tokens"
        )
    return KvLaw(growth // shortest, sizes[0] - growth)


def _cache_bytes(model: Any, tokens: int) -> int:
    """Of the cache after `tokens` tokens, the last of them by itself: a window is cut when the next token comes."""
    cache = None
    if takes_dynamic_cache(type(model)):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.no_grad(), standing_in(), StorageLog(), own_state_of(model) as own:
        for count in (tokens - 1, 1) if cache is not None else (tokens,):
            ids_BT = torch.empty(1, count, dtype=torch.int64, device=CUDA)
            given = {} if cache is None else {"past_key_values": cache}
            model(input_ids=ids_BT, use_cache=True, **given)
        kept = own.latest if cache is None else cache
        if kept is None:
            raise ValueError(f"{type(model).__name__} returns no cache")
        return sum(tensor.nbytes for tensor in cache_tensors(kept))
