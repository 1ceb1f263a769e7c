"""The processes that hold a model together, each a shard of it: what they exchange in a pass.

Every layer adds twice to the residual stream, and each process holds a part of both sums. Embeddings and the stream itself
are whole on each, the logits become so, and with them what is chosen: no process has to be told by another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed

from workers.engines.graph.one_shot import OneShot

#: Sums of no more bytes are taken in one shot, on cards. 0: none are.
ONE_SHOT_BYTES = 0
#: By its name since torch 2.13, or by the one before.
_gather: Callable[..., object] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


@dataclass(frozen=True, slots=True)
class Peers:
    """The default group of `torch.distributed`, which the process has joined."""

    index: int
    count: int
    one_shot: OneShot | None = None

    def sum(self, part_NE: torch.Tensor) -> torch.Tensor:
        """The sum over all processes: the same bits in each. `part_NE` is written over."""
        if self.one_shot is not None and part_NE.nbytes <= self.one_shot.most_bytes:
            return self.one_shot.sum(part_NE)
        distributed.all_reduce(part_NE)
        return part_NE

    def gather(self, part_NV: torch.Tensor) -> torch.Tensor:
        """The parts of all processes side by side, [N, count * V]."""
        N, V = part_NV.shape
        parts_NV = part_NV.new_empty(self.count * N, V)
        _gather(parts_NV, part_NV.contiguous())
        return parts_NV.view(self.count, N, V).movedim(0, 1).reshape(N, -1)


def meet(index: int, count: int, dtype: torch.dtype, device: torch.device) -> Peers:
    """Prepare what they need to exchange the stream of one model. All processes call it together."""
    takes_one_shot = ONE_SHOT_BYTES > 0 and device.type == "cuda"
    return Peers(index, count, OneShot(ONE_SHOT_BYTES, dtype, device) if takes_one_shot else None)
