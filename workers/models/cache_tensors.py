"""The tensors of a live cache, whatever its layers keep: the one place that counts a cache's bytes.

Keys and values are the usual case. A layer may as well keep indexer keys, convolution and recurrent states, compressed
or quantised parts, some of them in dicts and tuples. Nothing here knows a layer class by name.
"""

from collections.abc import Iterator, Mapping

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig

#: Never entered: they hold tensors that are not the cache's, or none.
_OTHERS = (torch.nn.Module, PreTrainedConfig, torch.Stream, torch.device, torch.dtype, type, str, bytes)


def cache_tensors(cache: object) -> Iterator[torch.Tensor]:
    """Each tensor that `cache` holds, once. Scalars are left out: they count positions and hold nothing of a text.

    `cache`: a transformers `Cache`, a list of them, or the state of a model that keeps something else. A quantised
    tensor is given as the tensors that it consists of, one that several processes hold as the part that is here.
    """
    seen: set[int] = set()
    to_visit: list[object] = [cache]
    while to_visit:
        found = to_visit.pop()
        if found is None or isinstance(found, _OTHERS) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            if hasattr(found, "to_local"):
                to_visit.append(found.to_local())
            elif is_traceable_wrapper_subclass(found):
                to_visit += [getattr(found, name) for name in found.__tensor_flatten__()[0]]
            elif found.dim() > 0:
                yield found
        elif isinstance(found, Mapping):
            to_visit += found.values()
        elif isinstance(found, list | tuple | set | frozenset):
            to_visit += found
        elif hasattr(found, "__dict__"):
            to_visit += vars(found).values()


def cache_bytes(*caches: object) -> int:
    """Bytes that the caches hold: of each storage what their tensors show of it, what several of them show once.

    A sliding window is a view of one token more; the whole of such a storage counts in the allocator's figures. Counts
    fake and meta tensors as the real ones that they stand for.
    """
    storages: dict[int, int] = {}
    shown: dict[int, int] = {}
    seen: set[tuple[object, ...]] = set()
    for tensor in cache_tensors(caches):
        storage = tensor.untyped_storage()
        view = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        if view not in seen:
            seen.add(view)
            storages[storage._cdata] = storage.nbytes()
            shown[storage._cdata] = shown.get(storage._cdata, 0) + tensor.nbytes
    return sum(min(shown[key], storages[key]) for key in storages)
