"""The residual stream with what all processes together add to it."""

import torch

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.residual import WIDTH, Residual, store_moments_of_row
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.peers import Peers


def add_shards_plain(x: Residual | None, y: Residual, peers: Peers) -> Residual:
    """x and the sum of all processes' y. `x` None: the sum alone. `y` is written over."""
    total_NE = peers.sum(y.x_NE)
    return Residual(total_NE if x is None else x.x_NE + total_NE)


@jit
def _add(
    x, y, out, moments,
    E: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    e_TI = tl.arange(0, BLOCK_T)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    wait_for_previous(PDL)
    x_TI = tl.load(x + row * E + e_TI, mask=e_TI < E, other=0.0)
    y_TI = tl.load(y + row * E + e_TI, mask=e_TI < E, other=0.0)
    sum_TI = (x_TI.to(tl.float32) + y_TI.to(tl.float32)).to(x_TI.dtype)
    tl.store(out + row * E + e_TI, sum_TI, mask=e_TI < E)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    store_moments_of_row(sum_TI, e_TI, moments + row * (2 * T), E, WIDTH, BLOCK_T)


def add_shards(x: Residual | None, y: Residual, peers: Peers) -> Residual:
    """`add_shards_plain`, with the moments of the new stream."""
    N, E = y.x_NE.shape
    total = Residual(peers.sum(y.x_NE))
    if x is None:
        return total
    out_NE, tiles = torch.empty_like(x.x_NE), ceil_div(E, WIDTH)
    moments_N2T = torch.empty(N, 2, tiles, dtype=torch.float32, device=out_NE.device)
    _add[(N,)](
        x.x_NE, total.x_NE, out_NE, moments_N2T, E, WIDTH, power_of_two(tiles), num_warps=8, **launch_options()
    )  # fmt: skip
    return Residual(out_NE, moments_N2T)
