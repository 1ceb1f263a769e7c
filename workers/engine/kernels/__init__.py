"""The operations of a pass, twice: plain torch, which is their specification, and Triton."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from workers.engine.kernels.attend_blocks import attend_blocks, attend_blocks_plain, attend_chunk
from workers.engine.kernels.attend_ring import attend_ring, attend_ring_plain
from workers.engine.kernels.begin import begin, begin_plain
from workers.engine.kernels.finish import finish, finish_plain
from workers.engine.kernels.gate import gate, gate_plain
from workers.engine.kernels.jit import AVAILABLE
from workers.engine.kernels.linear import head, head_plain, linear, linear_plain
from workers.engine.kernels.mix import mix, mix_plain
from workers.engine.kernels.pick import pick, pick_plain
from workers.engine.rope import Angles
from workers.engine.weights import Weights


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each operation; the files beside this one say what each computes."""

    name: str
    begin: Callable[..., tuple[torch.Tensor, Angles]]
    linear: Callable[..., tuple[torch.Tensor, ...]]
    gate: Callable[..., torch.Tensor]
    mix: Callable[..., torch.Tensor]
    finish: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    head: Callable[..., torch.Tensor]
    attend_ring: Callable[..., torch.Tensor]
    attend_blocks: Callable[..., torch.Tensor]
    pick: Callable[..., tuple[torch.Tensor, torch.Tensor]]


PLAIN = Kernels(
    "torch",
    begin_plain,
    linear_plain,
    gate_plain,
    mix_plain,
    finish_plain,
    head_plain,
    attend_ring_plain,
    attend_blocks_plain,
    pick_plain,
)
FUSED = Kernels("triton", begin, linear, gate, mix, finish, head, attend_ring, attend_blocks, pick)
#: For a prompt's chunks, by the name of the kernels that decode: many rows are torch's to multiply, but what came
#: before them is read block by block.
OF_CHUNKS = {PLAIN.name: PLAIN, FUSED.name: replace(PLAIN, name=FUSED.name, attend_blocks=attend_chunk)}


def kernels_of(weights: Weights) -> Kernels:
    """Triton on a CUDA device, for the dtypes it multiplies; plain torch elsewhere."""
    if AVAILABLE and weights.device.type == "cuda" and weights.dtype != torch.float64:
        return FUSED
    return PLAIN
