"""The operations of a pass, twice: plain torch, which is their specification, and Triton."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from workers.engines.graph.kernels.add_norm import add_norm, add_norm_plain
from workers.engines.graph.kernels.attend_blocks import attend_blocks, attend_blocks_plain, attend_chunk
from workers.engines.graph.kernels.attend_ring import attend_ring, attend_ring_plain
from workers.engines.graph.kernels.down_proj import down_proj, down_proj_plain
from workers.engines.graph.kernels.embed import embed, embed_plain
from workers.engines.graph.kernels.gated_mlp import gated_mlp, gated_mlp_plain
from workers.engines.graph.kernels.greedy import greedy, greedy_plain
from workers.engines.graph.kernels.jit import AVAILABLE
from workers.engines.graph.kernels.linear import head, head_plain, linear, linear_plain
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Weights


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each operation; the files beside this one say what each computes."""

    name: str
    embed: Callable[..., tuple[torch.Tensor, Angles]]
    linear: Callable[..., tuple[torch.Tensor, ...]]
    gated_mlp: Callable[..., torch.Tensor]
    down_proj: Callable[..., torch.Tensor]
    add_norm: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    head: Callable[..., torch.Tensor]
    attend_ring: Callable[..., torch.Tensor]
    attend_blocks: Callable[..., torch.Tensor]
    greedy: Callable[..., tuple[torch.Tensor, torch.Tensor]]


PLAIN = Kernels(
    "torch",
    embed_plain,
    linear_plain,
    gated_mlp_plain,
    down_proj_plain,
    add_norm_plain,
    head_plain,
    attend_ring_plain,
    attend_blocks_plain,
    greedy_plain,
)
FUSED = Kernels(
    "triton", embed, linear, gated_mlp, down_proj, add_norm, head, attend_ring, attend_blocks, greedy
)
#: For a prompt's chunks, by the name of the kernels that decode: many rows are torch's to multiply, but what came
#: before them is read block by block.
OF_CHUNKS = {PLAIN.name: PLAIN, FUSED.name: replace(PLAIN, name=FUSED.name, attend_blocks=attend_chunk)}


def kernels_of(weights: Weights) -> Kernels:
    """Triton on a CUDA device, for the dtypes it multiplies; plain torch elsewhere."""
    if AVAILABLE and weights.device.type == "cuda" and weights.dtype != torch.float64:
        return FUSED
    return PLAIN
