"""A pass begins: the embedding rows of its tokens, and the angles of its positions."""

import torch

from workers.engines.graph.kernels.jit import ceil_div, first_launch_options, jit, power_of_two, tl
from workers.engines.graph.kernels.residual import WIDTH, Residual
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.rope import Angles, angles
from workers.engines.graph.weights import Weights


def embed_plain(
    weights: Weights, tokens_BM: torch.Tensor, start: torch.Tensor, far_limit: int
) -> tuple[Residual, Angles]:
    """The residual stream as it begins, and the angles of positions `start .. start + M`; the far ones of
    `min(position, far_limit)`."""
    turn = angles(
        start, tokens_BM.shape[1], weights.inv_freq_F, weights.rope_scaling, far_limit, weights.dtype
    )
    return Residual(weights.embedding_VE[tokens_BM.flatten()]), turn


@jit(do_not_specialize=["M", "far_limit"])
def _embed(
    embedding, tokens, start, inv_freq, scaling, far_limit, x, moments, cos, sin, far_cos, far_sin, M,
    E: tl.constexpr, F: tl.constexpr, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row = tl.program_id(0)
    m = row % M
    e_TI = tl.arange(0, BLOCK_E // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    token = tl.load(tokens + row)
    x_TI = tl.load(embedding + token * E + e_TI, mask=e_TI < E, other=0.0)
    tl.store(x + row * E + e_TI, x_TI, mask=e_TI < E)
    x_TI = x_TI.to(tl.float32)
    t = tl.arange(0, BLOCK_E // WIDTH)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    mean_T = tl.sum(x_TI, axis=1) / tl.minimum(tl.maximum(E - t * WIDTH, 1), WIDTH)
    away_TI = tl.where(e_TI < E, x_TI - mean_T[:, None], 0.0)
    tl.store(moments + row * (2 * T) + t, mean_T, mask=t < T)
    tl.store(moments + row * (2 * T) + T + t, tl.sum(away_TI * away_TI, axis=1), mask=t < T)
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
) -> tuple[Residual, Angles]:
    """`embed_plain` in one launch."""
    M, E, F = tokens_BM.shape[1], weights.embedding_VE.shape[1], weights.inv_freq_F.shape[0]
    N = tokens_BM.numel()
    x_NE = weights.embedding_VE.new_empty(N, E)
    moments_N2T = torch.empty(N, 2, ceil_div(E, WIDTH), dtype=torch.float32, device=x_NE.device)
    cos, sin, far_cos, far_sin = torch.empty(4, M, F, dtype=torch.float32, device=x_NE.device).unbind()
    _embed[(N,)](
        weights.embedding_VE, tokens_BM.contiguous(), start, weights.inv_freq_F, weights.rope_scaling,
        far_limit, x_NE, moments_N2T, cos, sin, far_cos, far_sin, M, E, F, WIDTH, max(WIDTH, power_of_two(E)),
        power_of_two(F), num_warps=4,
        **first_launch_options(),
    )  # fmt: skip
    return Residual(x_NE, moments_N2T), Angles(cos, sin, far_cos, far_sin)
