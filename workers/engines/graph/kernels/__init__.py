"""The operations of a pass, twice: plain torch, which is their specification, and Triton."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from workers.engines.graph.kernels.add_normed import add_normed, add_normed_plain
from workers.engines.graph.kernels.add_shards import add_shards, add_shards_plain
from workers.engines.graph.kernels.attend_blocks import attend_blocks, attend_blocks_plain
from workers.engines.graph.kernels.attend_latents import attend_latent_blocks_plain, attend_latent_ring_plain
from workers.engines.graph.kernels.attend_latents_tiles import (
    attend_latent_blocks,
    attend_latent_chunk,
    attend_latent_ring,
)
from workers.engines.graph.kernels.attend_packed import attend_packed_plain
from workers.engines.graph.kernels.attend_packed_tiles import attend_packed
from workers.engines.graph.kernels.attend_prompt import attend_alone, attend_chunk
from workers.engines.graph.kernels.attend_ring import attend_ring, attend_ring_plain
from workers.engines.graph.kernels.attend_window import attend_window, attend_window_plain
from workers.engines.graph.kernels.commit import accept, accept_plain, commit, commit_plain
from workers.engines.graph.kernels.down_proj import down_proj, down_proj_plain, down_proj_rows
from workers.engines.graph.kernels.embed import embed, embed_plain
from workers.engines.graph.kernels.experts import experts, experts_plain, experts_rows
from workers.engines.graph.kernels.gated_mlp import gated_mlp, gated_mlp_plain, gated_mlp_rows
from workers.engines.graph.kernels.greedy import greedy, greedy_plain
from workers.engines.graph.kernels.jit import AVAILABLE
from workers.engines.graph.kernels.linear import head, head_plain, linear, linear_plain, linear_rows
from workers.engines.graph.kernels.norm import norm_plain, norm_rows
from workers.engines.graph.kernels.norm_heads import norm_heads, norm_heads_plain
from workers.engines.graph.kernels.residual import Residual
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Weights


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each operation; the files beside this one say what each computes."""

    name: str
    embed: Callable[..., tuple[Residual, tuple[Angles, ...]]]
    linear: Callable[..., tuple[torch.Tensor, ...]]
    gated_mlp: Callable[..., torch.Tensor]
    experts: Callable[..., Residual]
    norm: Callable[..., torch.Tensor]
    norm_heads: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    down_proj: Callable[..., Residual]
    add_shards: Callable[..., Residual]
    add_normed: Callable[..., Residual]
    head: Callable[..., torch.Tensor]
    attend_ring: Callable[..., torch.Tensor]
    attend_blocks: Callable[..., torch.Tensor]
    attend_packed: Callable[..., torch.Tensor]
    attend_latent_ring: Callable[..., torch.Tensor]
    attend_latent_blocks: Callable[..., torch.Tensor]
    greedy: Callable[..., None]
    commit: Callable[..., None]
    accept: Callable[..., None]


PLAIN = Kernels(
    "torch",
    embed_plain,
    linear_plain,
    gated_mlp_plain,
    experts_plain,
    norm_plain,
    norm_heads_plain,
    down_proj_plain,
    add_shards_plain,
    add_normed_plain,
    head_plain,
    attend_ring_plain,
    attend_blocks_plain,
    attend_packed_plain,
    attend_latent_ring_plain,
    attend_latent_blocks_plain,
    greedy_plain,
    commit_plain,
    accept_plain,
)
FUSED = Kernels(
    "triton",
    embed,
    linear,
    gated_mlp,
    experts,
    norm_rows,
    norm_heads,
    down_proj,
    add_shards,
    add_normed,
    head,
    attend_ring,
    attend_blocks,
    attend_packed,
    attend_latent_ring,
    attend_latent_blocks,
    greedy,
    commit,
    accept,
)

#: For a prompt's chunks, by the name of the kernels that decode. Many rows are cuBLAS's to multiply.
OF_CHUNKS = {
    PLAIN.name: replace(PLAIN, attend_ring=attend_window_plain),
    FUSED.name: replace(
        FUSED,
        linear=linear_rows,
        gated_mlp=gated_mlp_rows,
        experts=experts_rows,
        down_proj=down_proj_rows,
        add_shards=add_shards_plain,
        attend_ring=attend_window,
        attend_blocks=attend_chunk,
        attend_latent_blocks=attend_latent_chunk,
    ),
}
#: For a prompt that is one pass.
ALONE = {**OF_CHUNKS, FUSED.name: replace(OF_CHUNKS[FUSED.name], attend_blocks=attend_alone)}


def kernels_of(weights: Weights) -> Kernels:
    """Triton on a CUDA device, for the dtypes it multiplies; plain torch elsewhere."""
    if AVAILABLE and weights.device.type == "cuda" and weights.dtype != torch.float64:
        return FUSED
    return PLAIN
