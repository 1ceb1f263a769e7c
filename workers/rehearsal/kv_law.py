"""How many bytes a model's cache takes, asked of the model itself: no list of families, no formula."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.initialization import no_init_weights

from workers.engines.eager.own_state import own_state_of
from workers.engines.eager.policies import takes_dynamic_cache
from workers.engines.eager.session import own_defaults
from workers.models.build import from_config
from workers.models.cache_tensors import cache_bytes
from workers.models.config import max_positions
from workers.rehearsal.passes import NotRehearsable
from workers.rehearsal.stand_in import CUDA, standing_in
from workers.rehearsal.storages import StorageLog

#: Lengths are multiples of this, so that caches that keep one entry for several tokens grow evenly.
_STEP = 128
#: What a config calls the length from which on a layer keeps no more.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention_window")


@dataclass(frozen=True, slots=True)
class KvLaw:
    """Bytes of a cache after n tokens of each sequence: `constant_bytes + n * bytes_per_token`, n beyond every window."""

    bytes_per_token: int
    constant_bytes: int


class KvRehearsal:
    """The model of a configuration, without memory, asked for the size of its cache. Of a multimodal model the text part.

    Everything raises `NotRehearsable`, in one line.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        text = config.get_text_config(decoder=True)
        with _refusals():
            self.window = max((_window(getattr(text, name, None)) for name in _WINDOWS), default=0)
            with torch.device("meta"), no_init_weights():
                model = from_config(config, dtype)
            self._positions = max_positions(config)
            # Some constructors make tensors of the CPU whatever the device.
            self._model: Any = model.to("meta").eval().requires_grad_(False)
            self._by_generate = _prepares_ids(self._model)

    def bytes_after(self, tokens: int, batch_size: int = 1) -> int:
        """Of the cache after `tokens` tokens of each sequence, the last of them by itself: a window is cut when the next
        token comes.
        """
        model = self._model
        cache = None
        with _refusals(), torch.no_grad(), standing_in(), StorageLog(), own_state_of(model) as own:
            if takes_dynamic_cache(type(model)):
                cache = DynamicCache(config=model.config.get_text_config(decoder=True))
            if self._by_generate and tokens > 1:
                _generate(model, cache, torch.empty(batch_size, tokens - 1, dtype=torch.int64, device=CUDA))
                return cache_bytes(own.latest if cache is None else cache)
            for count in (tokens - 1, 1) if cache is not None and tokens > 1 else (tokens,):
                ids_BT = torch.empty(batch_size, count, dtype=torch.int64, device=CUDA)
                given = {} if cache is None else {"past_key_values": cache}
                model(input_ids=ids_BT, use_cache=True, **given)
            kept = own.latest if cache is None else cache
            if kept is None and "use_cache" in signature(model.forward).parameters:
                raise NotRehearsable(f"{type(model).__name__} returns no cache")
            return cache_bytes(kept)

    def law(self, batch_size: int = 1) -> KvLaw:
        """From three lengths beyond every window. Of the whole batch: some states keep a part for all sequences."""
        shortest = -(-(self.window + 1) // _STEP) * _STEP
        try:
            return self._line(shortest, batch_size)
        except NotRehearsable:
            third = (self._positions or 0) // 3
            if third < shortest and third > self.window:  # nothing runs beyond a table of positions
                with contextlib.suppress(NotRehearsable):
                    return self._line(2 ** (third.bit_length() - 1), batch_size)
            raise

    def _line(self, shortest: int, batch_size: int) -> KvLaw:
        sizes = [self.bytes_after(count * shortest, batch_size) for count in (1, 2, 3)]
        growth = sizes[1] - sizes[0]
        if sizes[2] - sizes[1] != growth or growth % shortest:
            raise NotRehearsable(
                f"its cache is no straight line: {sizes} bytes at 1, 2 and 3 times {shortest} tokens"
            )
        return KvLaw(growth // shortest, sizes[0] - growth)


def kv_law(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16, batch_size: int = 1) -> KvLaw:
    """Run the model of `config` over three lengths without memory, and add up every tensor of its cache.

    Of a multimodal model the text part is run. Takes about a second. Raises `NotRehearsable`.
    """
    return KvRehearsal(config, dtype).law(batch_size)


def _prepares_ids(model: Any) -> bool:
    """Whether a forward of `generate` reads other ids than the new ones: one more (XLNet), or the whole text (CPM-Ant)."""
    if type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return False
    ids_BT = torch.empty(1, 3, dtype=torch.int64, device="meta")
    try:
        given = model.prepare_inputs_for_generation(ids_BT, next_sequence_length=1, use_cache=True)
        read = given["input_ids"].shape[1]
        return bool(read > 3 or (read == 3 and takes_dynamic_cache(type(model))))
    except Exception:  # it needs more than ids, or other ones
        return False


def _generate(model: Any, cache: DynamicCache | None, ids_BT: torch.Tensor) -> None:
    """Read the text as `generate` does, and one more token."""
    given = {} if cache is None else {"past_key_values": cache}
    with own_defaults(model):
        model.generate(ids_BT, generation_config=GenerationConfig(do_sample=False, max_new_tokens=2), **given)


def _window(size: object) -> int:
    """Some configs hold one for each layer, some none."""
    sizes = size if isinstance(size, list | tuple) else [size]
    return max((int(s) for s in sizes if isinstance(s, int)), default=0)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Anything may be wrong with a config that a person names."""
    try:
        yield
    except NotRehearsable:
        raise
    except Exception as error:
        raise NotRehearsable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
