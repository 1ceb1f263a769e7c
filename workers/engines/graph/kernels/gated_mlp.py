"""The gated MLP's first half in one launch: act(norm(x) G^T) * (norm(x) U^T)."""

from collections.abc import Callable

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.linear import Tile, activate, load_ahead, product, tile_of
from workers.engines.graph.kernels.norm import norm_plain, norm_rows
from workers.engines.graph.kernels.residual import WIDTH, Residual, mean_and_scale
from workers.engines.graph.kernels.tiles import activate as activate_tile
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Linear, Norm


def gated_mlp_plain(
    x: Residual,
    norm: Norm,
    gate: Linear,
    up: Linear,
    activation: str,
    normed: Callable[[torch.Tensor, Norm], torch.Tensor] = norm_plain,
) -> torch.Tensor:
    """[N, IN]."""
    normed_NE = normed(x.x_NE, norm)
    gated = activate(functional.linear(normed_NE, gate.weight_OI, gate.bias_O), activation)
    return gated * functional.linear(normed_NE, up.weight_OI, up.bias_O)


def gated_mlp_rows(x: Residual, norm: Norm, gate: Linear, up: Linear, activation: str) -> torch.Tensor:
    """`gated_mlp_plain` for many rows, which are cuBLAS's to multiply."""
    return gated_mlp_plain(x, norm, gate, up, activation, norm_rows)


@jit(do_not_specialize=["rows"])
def _gated_mlp(
    x, moments, norm, shift, eps, gate_w, gate_b, up_w, up_b, y, OUT, rows,
    IN: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr,
    EVEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: rows of both matrices by turns, in one product; a pair gives one output."""
    outputs_O = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)) // 2
    is_up_O = tl.arange(0, BLOCK_O) % 2 == 1
    rows_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_O = outputs_O < OUT
    w_O = tl.where(is_up_O, up_w + outputs_O.to(tl.int64) * IN, gate_w + outputs_O.to(tl.int64) * IN)
    w_OA = load_ahead(w_O, inside_O, 0, IN, AHEAD, PDL)
    bias_O = tl.load(gate_b + outputs_O, mask=inside_O & (is_up_O == 0) & GATE_BIAS, other=0.0).to(tl.float32)
    bias_O += tl.load(up_b + outputs_O, mask=inside_O & is_up_O & UP_BIAS, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    mean_R, scale_R = mean_and_scale(moments, rows_R, rows, eps, IN, NORM, WIDTH, BLOCK_T)
    y_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    y_OR = product(
        y_OR, w_OA, w_O, inside_O, x, rows_R, rows, IN, mean_R, scale_R, norm, shift,
        NORM, EVEN, BLOCK_I, AHEAD, PDL,
    )  # fmt: skip
    y_OR += bias_O[:, None]
    pairs_OR2 = tl.permute(tl.reshape(y_OR, (BLOCK_O // 2, 2, BLOCK_R)), (0, 2, 1))
    gate_OR, up_OR = tl.split(pairs_OR2)
    y_OR = activate_tile(gate_OR, ACTIVATION) * up_OR
    half_O = tl.program_id(0) * (BLOCK_O // 2) + tl.arange(0, BLOCK_O // 2)
    inside = (half_O < OUT)[:, None] & (rows_R < rows)[None, :]
    tl.store(y + rows_R[None, :] * OUT + half_O[:, None], y_OR.to(y.dtype.element_ty), mask=inside)


def gated_mlp(
    x: Residual, norm: Norm, gate: Linear, up: Linear, activation: str, tile: Tile | None = None
) -> torch.Tensor:
    """`gated_mlp_plain` in one launch."""
    (N, E), OUT = x.x_NE.shape, up.weight_OI.shape[0]
    tile = tile or tile_of(2 * OUT, x.x_NE.device)
    y_NO = x.x_NE.new_empty(N, OUT)
    depth = tile.fitted(E)
    _gated_mlp[(ceil_div(2 * OUT, tile.outputs), ceil_div(N, tile.rows))](
        x.x_NE, x.moments_N2T, norm.weight_E, norm.shift_E, norm.eps, gate.weight_OI,
        y_NO if gate.bias_O is None else gate.bias_O, up.weight_OI, y_NO if up.bias_O is None else up.bias_O, y_NO, OUT, N,
        E, gate.bias_O is not None, up.bias_O is not None, activation, norm.kind, E % depth == 0,
        WIDTH, power_of_two(ceil_div(E, WIDTH)), tile.outputs, *tile.options(x.x_NE, depth),
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return y_NO
