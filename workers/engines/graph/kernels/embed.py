"""A pass begins: the embedding rows of its tokens, and the angles of its positions, for each rope of the model."""

import torch

from workers.engines.graph.kernels.jit import ceil_div, first_launch_options, jit, power_of_two, tl
from workers.engines.graph.kernels.residual import WIDTH, Residual, store_moments_of_row
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.rope import Angles, angles
from workers.engines.graph.weights import Weights


def embed_plain(
    weights: Weights, tokens_BM: torch.Tensor, start: torch.Tensor, far_limit: int
) -> tuple[Residual, tuple[Angles, ...]]:
    """The residual stream as it begins, and for each rope the angles of positions `start .. start + M`; the far ones of
    `min(position, far_limit)`."""
    turns = tuple(angles(start, tokens_BM.shape[1], rope, far_limit, weights.dtype) for rope in weights.ropes)
    x_NE = weights.embedding_VE[tokens_BM.flatten()]
    return Residual(x_NE if weights.embedding_scale == 1.0 else x_NE * weights.embedding_scale), turns


@jit(do_not_specialize=["M", "far_limit"])
def _embed(
    embedding, embedding_scale, tokens, start, inv_freq, scaling, far_limit, x, moments, cos, sin, far_cos, far_sin, M,
    E: tl.constexpr, F: tl.constexpr, ROPES: tl.constexpr, SCALED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row = tl.program_id(0)
    m = row % M
    e_TI = tl.arange(0, BLOCK_E // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    token = tl.load(tokens + row)
    x_TI = tl.load(embedding + token * E + e_TI, mask=e_TI < E, other=0.0)
    if SCALED:
        x_TI = (x_TI.to(tl.float32) * embedding_scale).to(x_TI.dtype)
    tl.store(x + row * E + e_TI, x_TI, mask=e_TI < E)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    store_moments_of_row(x_TI, e_TI, moments + row * (2 * T), E, WIDTH, BLOCK_E // WIDTH)
    f = tl.arange(0, BLOCK_F)  # of all ropes, one behind the other
    frequency = tl.load(inv_freq + f, mask=f < ROPES * F, other=0.0)
    scale = tl.load(scaling + f // F, mask=f < ROPES * F, other=1.0)
    position = tl.load(start) + m
    near = position.to(tl.float64) * frequency
    far = tl.minimum(position, far_limit).to(tl.float64) * frequency
    at = (f // F * M + m) * F + f % F
    tl.store(cos + at, (tl.cos(near) * scale).to(tl.float32), mask=f < ROPES * F)
    tl.store(sin + at, (tl.sin(near) * scale).to(tl.float32), mask=f < ROPES * F)
    tl.store(far_cos + at, (tl.cos(far) * scale).to(tl.float32), mask=f < ROPES * F)
    tl.store(far_sin + at, (tl.sin(far) * scale).to(tl.float32), mask=f < ROPES * F)


def embed(
    weights: Weights, tokens_BM: torch.Tensor, start: torch.Tensor, far_limit: int
) -> tuple[Residual, tuple[Angles, ...]]:
    """`embed_plain` in one launch."""
    M, E = tokens_BM.shape[1], weights.embedding_VE.shape[1]
    N, ropes, F = tokens_BM.numel(), len(weights.ropes), len(weights.ropes[0].inv_freq_F)
    inv_freq, scaling = weights.rope_tables
    x_NE = weights.embedding_VE.new_empty(N, E)
    moments_N2T = torch.empty(N, 2, ceil_div(E, WIDTH), dtype=torch.float32, device=x_NE.device)
    turns_4RMF = torch.empty(4, ropes, M, F, dtype=torch.float32, device=x_NE.device)
    _embed[(N,)](
        weights.embedding_VE, weights.embedding_scale, tokens_BM.contiguous(), start, inv_freq, scaling,
        far_limit, x_NE, moments_N2T, *turns_4RMF.unbind(), M, E, F, ropes, weights.embedding_scale != 1.0,
        WIDTH, max(WIDTH, power_of_two(E)), power_of_two(ropes * F), num_warps=4,
        **first_launch_options(),
    )  # fmt: skip
    return Residual(x_NE, moments_N2T), tuple(Angles(*turns_4RMF[:, rope].unbind()) for rope in range(ropes))
