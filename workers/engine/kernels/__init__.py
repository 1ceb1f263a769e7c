"""The operations of a pass, twice: plain torch, which is their specification, and Triton."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.engine.kernels.attend_blocks import attend_blocks_plain
from workers.engine.kernels.attend_ring import attend_ring_plain
from workers.engine.kernels.finish import finish_plain
from workers.engine.kernels.gate import gate_plain
from workers.engine.kernels.linear import head_plain, linear_plain
from workers.engine.kernels.jit import AVAILABLE
from workers.engine.kernels.mix import mix_plain
from workers.engine.kernels.pick import pick_plain
from workers.engine.weights import Weights


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each operation; the files beside this one say what each computes."""

    name: str
    linear: Callable[..., tuple[torch.Tensor, ...]]
    gate: Callable[..., torch.Tensor]
    mix: Callable[..., torch.Tensor]
    finish: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    head: Callable[..., torch.Tensor]
    attend_ring: Callable[..., torch.Tensor]
    attend_blocks: Callable[..., torch.Tensor]
    pick: Callable[..., tuple[torch.Tensor, torch.Tensor]]


PLAIN = Kernels(
    name="torch",
    linear=linear_plain,
    gate=gate_plain,
    mix=mix_plain,
    finish=finish_plain,
    head=head_plain,
    attend_ring=attend_ring_plain,
    attend_blocks=attend_blocks_plain,
    pick=pick_plain,
)


def kernels_of(weights: Weights) -> Kernels:
    """Triton on a CUDA device, for the dtypes it multiplies; plain torch elsewhere."""
    return PLAIN
