"""A pass begins: the embedding rows of its tokens, and the angles of its positions."""

import torch

from workers.engines.graph.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.rope import Angles, angles
from workers.engines.graph.weights import Weights


def embed_plain(
    weights: Weights, tokens_BM: torch.Tensor, start: torch.Tensor, far_limit: int
) -> tuple[torch.Tensor, Angles]:
    """x [N, E] and the angles of positions `start .. start + M`; the far ones of `min(position, far_limit)`."""
    turn = angles(
        start, tokens_BM.shape[1], weights.inv_freq_F, weights.rope_scaling, far_limit, weights.dtype
    )
    return weights.embedding_VE[tokens_BM.flatten()], turn


@jit(do_not_specialize=["M", "far_limit"])
def _embed(
    embedding, tokens, start, inv_freq, scaling, far_limit, x, cos, sin, far_cos, far_sin, M,
    E: tl.constexpr, F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row = tl.program_id(0)
    m = row % M
    e = tl.arange(0, BLOCK_E)
    token = tl.load(tokens + row)
    tl.store(x + row * E + e, tl.load(embedding + token * E + e, mask=e < E), mask=e < E)
    f = tl.arange(0, BLOCK_F)
    frequency = tl.load(inv_freq + f, mask=f < F, other=0.0)
    position = tl.load(start) + m
    near = position.to(tl.float64) * frequency
    far = tl.minimum(position, far_limit).to(tl.float64) * frequency
    at = m * F + f
    tl.store(cos + at, (tl.cos(near) * scaling).to(tl.float32), mask=f < F)
    tl.store(sin + at, (tl.sin(near) * scaling).to(tl.float32), mask=f < F)
    tl.store(far_cos + at, (tl.cos(far) * scaling).to(tl.float32), mask=f < F)
    tl.store(far_sin + at, (tl.sin(far) * scaling).to(tl.float32), mask=f < F)


def embed(
    weights: Weights, tokens_BM: torch.Tensor, start: torch.Tensor, far_limit: int
) -> tuple[torch.Tensor, Angles]:
    """`embed_plain` in one launch."""
    M, E, F = tokens_BM.shape[1], weights.embedding_VE.shape[1], weights.inv_freq_F.shape[0]
    x_NE = weights.embedding_VE.new_empty(tokens_BM.numel(), E)
    cos, sin, far_cos, far_sin = torch.empty(4, M, F, dtype=torch.float32, device=x_NE.device).unbind()
    _embed[(tokens_BM.numel(),)](
        weights.embedding_VE, tokens_BM.contiguous(), start, weights.inv_freq_F, weights.rope_scaling,
        far_limit, x_NE, cos, sin, far_cos, far_sin, M, E, F, power_of_two(E), power_of_two(F), num_warps=4,
        **launch_options(),
    )  # fmt: skip
    return x_NE, Angles(cos, sin, far_cos, far_sin)
