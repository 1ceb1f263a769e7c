"""The residual stream with the norm of something added (norms behind attention and MLP: Gemma, OLMo-2)."""

import torch

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.norm import apply, norm_plain
from workers.engines.graph.kernels.residual import WIDTH, Residual, store_moments_of_row
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Norm


def add_normed_plain(x: Residual, y: Residual, norm: Norm) -> Residual:
    """x + norm(y), of an RMSNorm without a bias."""
    return Residual(x.x_NE + norm_plain(y.x_NE, norm))


@jit
def _add_normed(
    x, y, weight, out, moments, eps,
    E: tl.constexpr, NORM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    e_TI = tl.arange(0, BLOCK_T)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    weight_TI = tl.load(weight + e_TI, mask=e_TI < E, other=0.0)
    wait_for_previous(PDL)
    y_TI = tl.load(y + row * E + e_TI, mask=e_TI < E, other=0.0)
    x_TI = tl.load(x + row * E + e_TI, mask=e_TI < E, other=0.0)
    wide_TI = y_TI.to(tl.float32)
    square = tl.sum(tl.sum(wide_TI * wide_TI, axis=1), axis=0) / E
    normed_TI = apply(y_TI, 0.0, 1.0 / tl.sqrt(square + eps), weight_TI, weight_TI, NORM)
    sum_TI = (x_TI.to(tl.float32) + normed_TI.to(tl.float32)).to(x_TI.dtype)
    sum_TI = tl.where(e_TI < E, sum_TI, 0.0)
    tl.store(out + row * E + e_TI, sum_TI, mask=e_TI < E)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    store_moments_of_row(sum_TI, e_TI, moments + row * (2 * T), E, WIDTH, BLOCK_T)


def add_normed(x: Residual, y: Residual, norm: Norm) -> Residual:
    """`add_normed_plain` in one launch, with the moments of the sum."""
    N, E = x.x_NE.shape
    out_NE, tiles = torch.empty_like(x.x_NE), ceil_div(E, WIDTH)
    moments_N2T = torch.empty(N, 2, tiles, dtype=torch.float32, device=out_NE.device)
    _add_normed[(N,)](
        x.x_NE, y.x_NE, norm.weight_E, out_NE, moments_N2T, norm.eps,
        E, norm.kind, WIDTH, power_of_two(tiles), num_warps=8, **launch_options(),
    )  # fmt: skip
    return Residual(out_NE, moments_N2T)
