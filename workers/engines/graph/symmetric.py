"""Memory of a card that other cards of the host read, through NVLink or PCIe: torch's symmetric memory, without multicast."""

import os
from dataclasses import dataclass

import torch
from torch import distributed

#: Programs of one kernel that meet those of the other cards, each in a place of its own.
PROGRAMS = 1024
_PLACE_BYTES = 4


@dataclass(frozen=True, slots=True)
class SymmetricBuffer:
    """Of each process: a pad where the others' programs say how often they have come, then two slots of `most_bytes`.

    `bases_P`: addresses of all processes' buffers, as this card reaches them. `turns`: how often each program has come itself; it
    uses the two slots by turns. Whoever reads a slot has come once more before its owner writes to it again.
    """

    index: int
    count: int
    most_bytes: int
    bases_P: torch.Tensor
    turns: torch.Tensor
    own: torch.Tensor

    @property
    def pad_bytes(self) -> int:
        return PROGRAMS * self.count * _PLACE_BYTES


def open_buffer(index: int, count: int, most_bytes: int, device: torch.device) -> SymmetricBuffer | None:
    """All processes call it together. None for all, where one of the cards does not reach the others' memory."""
    os.environ |= {
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1",  # each process calls its card the first
    }
    from torch.distributed import _symmetric_memory as symmetric

    group = distributed.group.WORLD
    assert group is not None
    size = PROGRAMS * count * _PLACE_BYTES + 2 * most_bytes
    own = symmetric.empty(size, dtype=torch.uint8, device=device)
    own.zero_()
    torch.cuda.synchronize(device)
    bases: list[int] = []
    try:
        handle = symmetric.rendezvous(own, group)
        bases = [handle.get_buffer(peer, (size,), torch.uint8).data_ptr() for peer in range(count)]
    except RuntimeError:
        pass  # cards that are not linked
    reached = torch.tensor(int(bool(bases)), device=device)
    distributed.all_reduce(reached, distributed.ReduceOp.MIN)
    if not int(reached):
        return None
    turns = torch.zeros(PROGRAMS, dtype=torch.int32, device=device)
    return SymmetricBuffer(index, count, most_bytes, torch.tensor(bases, device=device), turns, own)
