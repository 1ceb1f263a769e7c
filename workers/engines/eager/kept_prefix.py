"""The beginning of several prompts, read once: the layers of a cache as they were behind it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from workers.engines.eager.score import skim
from workers.engines.shared.prefix import begins_with


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """`ids_P`: the tokens that were read, on the host. `layers`: of one sequence."""

    ids_P: torch.Tensor
    layers: Sequence[Any]

    def begins(self, ids_BT: torch.Tensor) -> bool:
        return begins_with(ids_BT, self.ids_P)

    def put_into(self, cache: Cache, batch: int) -> None:
        """Make `cache`, a new one, as if `batch` sequences had read the prefix."""
        cache.layers = [_repeated(layer, batch) for layer in self.layers]


def read_prefix(
    kept: KeptPrefix | None, model: PreTrainedModel, cache: Cache, ids_P: torch.Tensor, chunk: int | None
) -> KeptPrefix:
    """Read `ids_P` into `cache`, a new one, `chunk` tokens a pass. Goes on from `kept` where the text begins with it."""
    start = 0
    if kept is not None and kept.begins(ids_P[None]):
        kept.put_into(cache, 1)
        start = len(kept.ids_P)
    rest_1N = ids_P[None, start:].to(model.device)
    skim([(model, cache)], rest_1N, chunk or rest_1N.shape[1])
    return KeptPrefix(ids_P, cache.layers)


def _repeated(layer: Any, batch: int) -> Any:
    """A copy of a layer of one sequence, for `batch` of them. Sequences come first in all of its tensors."""
    copied = copy.deepcopy(layer)
    if batch > 1:
        for name, value in vars(copied).items():
            if isinstance(value, torch.Tensor) and value.dim() > 2:
                setattr(copied, name, value.repeat(batch, *[1] * (value.dim() - 1)))
    return copied
