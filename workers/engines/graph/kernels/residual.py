"""The residual stream, and what its norms need of it."""

from typing import NamedTuple

import torch

from workers.engines.graph.kernels.jit import jit, tl

#: Numbers of a row of the residual stream whose moments are kept together: what one program of `down_proj` computes.
WIDTH = 64


class Residual(NamedTuple):
    """`x_NE`: the stream. `moments_N2T`: of each 64 numbers of a row their mean, and the sum of their squared distances
    from it. The kernels write them beside the stream, so that a norm costs its reader no pass over the row; plain torch
    does without."""

    x_NE: torch.Tensor
    moments_N2T: torch.Tensor | None = None


@jit
def store_moments_of_row(x_TI, e_TI, moments, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of one row of the stream, [tiles, WIDTH], as it is stored; to `moments` of that row."""
    x_TI = x_TI.to(tl.float32)
    t = tl.arange(0, BLOCK_T)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    mean_T = tl.sum(x_TI, axis=1) / tl.minimum(tl.maximum(E - t * WIDTH, 1), WIDTH)
    away_TI = tl.where(e_TI < E, x_TI - mean_T[:, None], 0.0)
    tl.store(moments + t, mean_T, mask=t < T)
    tl.store(moments + T + t, tl.sum(away_TI * away_TI, axis=1), mask=t < T)


@jit
def mean_and_scale(
    moments, rows_R, rows, eps, E: tl.constexpr, NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr
):  # fmt: skip
    """Of rows: the mean (of a LayerNorm; 0 else), and 1 / sqrt(mean square about it + eps). Each as if the row were alone."""
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    t = tl.arange(0, BLOCK_T)
    inside = (rows_R < rows)[:, None] & (t < T)[None, :]
    at_RT = moments + rows_R[:, None] * (2 * T) + t[None, :]
    mean_RT = tl.load(at_RT, mask=inside, other=0.0)
    spread_RT = tl.load(at_RT + T, mask=inside, other=0.0)
    count_T = tl.minimum(tl.maximum(E - t * WIDTH, 0), WIDTH).to(tl.float32)
    mean_R = tl.sum(mean_RT * 0.0, axis=1)
    if NORM == "layer":
        mean_R = tl.sum(mean_RT * count_T[None, :], axis=1) / E
    away_RT = mean_RT - mean_R[:, None]
    square_R = tl.sum(spread_RT + count_T[None, :] * away_RT * away_RT, axis=1) / E
    return mean_R, 1.0 / tl.sqrt(square_R + eps)
