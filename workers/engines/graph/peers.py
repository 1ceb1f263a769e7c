"""The processes that hold a model together, each a shard of it: what they exchange in a pass.

Every layer adds twice to the residual stream, and each process holds a part of both sums. Embeddings and the stream itself
are whole on each, the logits become so, and with them what is chosen: no process has to be told by another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed

from workers.engines.graph.symmetric import SymmetricBuffer, open_buffer

#: Sums of no more bytes are taken on cards by one kernel, which reads the other cards' memory. 0: all are NCCL's. Run by
#: Triton's interpreter so far, not by cards: `python -m tests.benchmarks.devices` measures it with 256 KiB.
NEAR_BYTES = 0
#: By its name since torch 2.13, or by the one before.
_gather: Callable[..., object] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


@dataclass(frozen=True, slots=True)
class Peers:
    """The default group of `torch.distributed`, which the process has joined. `near`: where small sums are taken."""

    index: int
    count: int
    near: SymmetricBuffer | None = None

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


def meet(index: int, count: int, device: torch.device) -> Peers:
    """Prepare what they need to exchange the stream of one model. All processes call it together."""
    takes_near = NEAR_BYTES > 0 and device.type == "cuda"
    return Peers(index, count, open_buffer(index, count, NEAR_BYTES, device) if takes_near else None)
