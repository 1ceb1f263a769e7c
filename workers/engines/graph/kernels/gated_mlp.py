"""The gated MLP's first half in one launch: act(x G^T) * (x U^T)."""

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.linear import TILE, Tile, activate, prefetch, product
from workers.engines.graph.kernels.tiles import activate as activate_tile
from workers.engines.graph.weights import Linear


def gated_mlp_plain(x_NE: torch.Tensor, gate: Linear, up: Linear, activation: str) -> torch.Tensor:
    """[N, IN]."""
    gated = activate(functional.linear(x_NE, gate.weight_OI, gate.bias_O), activation)
    return gated * functional.linear(x_NE, up.weight_OI, up.bias_O)


@jit(do_not_specialize=["rows"])
def _gated_mlp(
    x, gate_w, gate_b, up_w, up_b, y, OUT, rows,
    IN: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    gate_OR = product(
        x, gate_w, outputs_O, OUT, rows_R, rows, 0, IN, IN, EVEN, BLOCK_O, BLOCK_I, BLOCK_R, PREFETCH, PDL
    )
    up_OR = product(
        x, up_w, outputs_O, OUT, rows_R, rows, 0, IN, IN, EVEN, BLOCK_O, BLOCK_I, BLOCK_R, PREFETCH, PDL
    )
    if GATE_BIAS:
        gate_OR += tl.load(gate_b + outputs_O, mask=outputs_O < OUT, other=0.0).to(tl.float32)[:, None]
    if UP_BIAS:
        up_OR += tl.load(up_b + outputs_O, mask=outputs_O < OUT, other=0.0).to(tl.float32)[:, None]
    y_OR = activate_tile(gate_OR, ACTIVATION) * up_OR
    inside = (outputs_O < OUT)[:, None] & (rows_R < rows)[None, :]
    tl.store(y + rows_R[None, :] * OUT + outputs_O[:, None], y_OR.to(y.dtype.element_ty), mask=inside)


def gated_mlp(
    x_NE: torch.Tensor, gate: Linear, up: Linear, activation: str, tile: Tile = TILE
) -> torch.Tensor:
    """`gated_mlp_plain` in one launch."""
    (N, E), OUT = x_NE.shape, up.weight_OI.shape[0]
    y_NO = x_NE.new_empty(N, OUT)
    depth = min(tile.depth, max(16, power_of_two(E)))
    _gated_mlp[(ceil_div(OUT, tile.outputs), ceil_div(N, tile.rows))](
        x_NE, gate.weight_OI, y_NO if gate.bias_O is None else gate.bias_O,
        up.weight_OI, y_NO if up.bias_O is None else up.bias_O, y_NO, OUT, N,
        E, gate.bias_O is not None, up.bias_O is not None, activation, E % depth == 0,
        tile.outputs, depth, tile.rows, prefetch(x_NE), **launch_options(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y_NO
