"""The processes that hold a model together, each a shard of it: what they exchange in a pass.

Every layer adds twice to the residual stream, and each process holds a part of both sums. Embeddings and the stream itself
are whole on each, the logits become so, and with them what is chosen: no process has to be told by another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed

#: By its name since torch 2.13, or by the one before.
_gather: Callable[..., object] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


@dataclass(frozen=True, slots=True)
class Peers:
    """The default group of `torch.distributed`, which the process has joined."""

    index: int
    count: int

    def sum(self, part_NE: torch.Tensor) -> torch.Tensor:
        """The sum over all processes: the same bits in each. `part_NE` is written over."""
        distributed.all_reduce(part_NE)
        return part_NE

    def gather(self, part_NV: torch.Tensor) -> torch.Tensor:
        """The parts of all processes side by side, [N, count * V]."""
        N, V = part_NV.shape
        parts_NV = part_NV.new_empty(self.count * N, V)
        _gather(parts_NV, part_NV.contiguous())
        return parts_NV.view(self.count, N, V).movedim(0, 1).reshape(N, -1)
