"""The beginning of several prompts, read once: caches of one sequence, which those of a run copy."""

from dataclasses import dataclass

import torch

from workers.engines.graph.model import CachedModel
from workers.engines.graph.prefill import new_prefill


@dataclass(frozen=True, slots=True)
class PrefixRead:
    """`ids_P`: the tokens that were read, on the host. `readers`: of one sequence, the target last."""

    ids_P: torch.Tensor
    readers: tuple[CachedModel, ...]

    def put_into(self, readers: tuple[CachedModel, ...]) -> None:
        """Make the caches of `readers`, which hold nothing yet, as if each of their sequences had read the prefix."""
        for reader, one in zip(readers, self.readers, strict=True):
            reader.cache.copy_from(one.cache, len(self.ids_P))


def read_prefix(readers: tuple[CachedModel, ...], ids_P: torch.Tensor, chunk: int) -> PrefixRead:
    """Read `ids_P` into the caches of `readers`, which are new and of one sequence, `chunk` tokens a pass."""
    prefill = new_prefill(readers, 1, len(ids_P), chunk, synthetic=False)
    prefill.read(ids_P[None].to(readers[-1].weights.device))
    return PrefixRead(ids_P, readers)
