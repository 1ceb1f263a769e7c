"""A mixture of experts: the residual stream with what the chosen experts of each token add.

Three launches: the router's scores; gate and up of all chosen experts; their down projections, summed. Only the weights of
chosen experts are read. Each pair of a token and an expert is a program of its own, so that the rows of a verification may
differ in their experts, and a row is summed alike however many there are.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from workers.engines.graph.kernels.down_proj import AT_ONCE, STEPS, merge_splits, store_moments
from workers.engines.graph.kernels.jit import (
    ceil_div,
    jit,
    launch_options,
    multiprocessors,
    power_of_two,
    tickets,
    tl,
)
from workers.engines.graph.kernels.linear import Tile, activate, add_columns
from workers.engines.graph.kernels.norm import apply, norm_plain, norm_rows
from workers.engines.graph.kernels.residual import WIDTH, Residual, mean_and_scale
from workers.engines.graph.kernels.routing import choice, chosen, routing_constants
from workers.engines.graph.kernels.tiles import activate as activate_tile
from workers.engines.graph.kernels.tiles import wait_before_next, wait_for_previous
from workers.engines.graph.weights import Experts, Norm
from workers.engines.shared.rope import working


def experts_plain(
    x: Residual,
    norm: Norm,
    experts: Experts,
    activation: str,
    onto: Residual | None = None,
    normed: Callable[[torch.Tensor, Norm], torch.Tensor] = norm_plain,
) -> Residual:
    """The new residual stream, rounded once: what the experts of `x` add to it, or to `onto`."""
    normed_NE, router = normed(x.x_NE, norm), experts.router
    dtype = working(normed_NE.dtype) if experts.routing.wide else normed_NE.dtype
    scores_NX = functional.linear(normed_NE.to(dtype), router.weight_OI.to(dtype), router.bias_O)
    return mix_plain(onto or x, normed_NE, experts, activation, scores_NX)


def mix_plain(
    x: Residual, normed_NE: torch.Tensor, experts: Experts, activation: str, scores_NX: torch.Tensor
) -> Residual:
    """Expert after expert, each with the rows that chose it."""
    dtype = x.x_NE.dtype
    expert_NS, share_NS = chosen(scores_NX, experts)
    pair_P = expert_NS.flatten().argsort(stable=True)
    counts = expert_NS.flatten().bincount(minlength=len(experts.down_XEI)).tolist()
    total_NE = x.x_NE.to(working(dtype), copy=True)
    for expert, pairs in enumerate(pair_P.split(counts)):
        if len(pairs):
            rows = pairs // experts.top
            fed = _gated(normed_NE[rows], experts, expert, activation)
            bias_E = None if experts.down_bias_XE is None else experts.down_bias_XE[expert]
            y = functional.linear(fed, experts.down_XEI[expert], bias_E)
            total_NE.index_add_(0, rows, y.to(total_NE.dtype) * share_NS.flatten()[pairs, None])
    return Residual(total_NE.to(dtype))


def experts_rows(
    x: Residual, norm: Norm, experts: Experts, activation: str, onto: Residual | None = None
) -> Residual:
    """`experts_plain` for many rows, which are cuBLAS's to multiply."""
    return experts_plain(x, norm, experts, activation, onto, norm_rows)


def _gated(normed_PE: torch.Tensor, experts: Experts, expert: int, activation: str) -> torch.Tensor:
    """What goes into the down projection of one expert."""
    bias_O = None if experts.gate_up_bias_XO is None else experts.gate_up_bias_XO[expert]
    both_PO = functional.linear(normed_PE, experts.gate_up_XOE[expert], bias_O)
    gate, up = (both_PO[:, ::2], both_PO[:, 1::2]) if experts.interleaved else both_PO.chunk(2, dim=-1)
    if experts.clamp is None:
        return activate(gate, activation) * up
    alpha, limit = experts.clamp
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * alpha)


@jit(do_not_specialize=["rows"])
def _route(
    x, moments, norm, shift, eps, w, b, y, rows,
    IN: tl.constexpr, X: tl.constexpr, BIASED: tl.constexpr, NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_I: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: some experts, row after row. The matrix is small: all of it is read before the kernels before are done."""
    x_X, i = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_I)
    inside_XI = (x_X < X)[:, None] & (i < IN)[None, :]
    w_XI = tl.load(w + x_X[:, None] * IN + i[None, :], mask=inside_XI, other=0.0)
    norm_I = tl.load(norm + i, mask=i < IN, other=0.0)
    shift_I = tl.load(shift + i, mask=i < IN, other=0.0)
    bias_X = tl.load(b + x_X, mask=(x_X < X) & BIASED, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    for row in range(rows):
        x_I = tl.load(x + row * IN + i, mask=i < IN, other=0.0)
        mean_R, scale_R = mean_and_scale(moments, row + tl.arange(0, 1), rows, eps, IN, NORM, WIDTH, BLOCK_T)
        x_I = apply(x_I, mean_R, scale_R, norm_I, shift_I, NORM)
        y_X = tl.sum(w_XI.to(tl.float32) * x_I.to(tl.float32)[None, :], axis=1) + bias_X
        tl.store(y + row * X + x_X, y_X.to(y.dtype.element_ty), mask=x_X < X)


@jit(do_not_specialize=["alpha", "limit"])
def _gate_up(
    x, moments, norm, shift, eps, scores, correction, w, w_expert, b, y, alpha, limit,
    IN: tl.constexpr, OUT: tl.constexpr, X: tl.constexpr, TOP: tl.constexpr, ROUTING: tl.constexpr, W_O: tl.constexpr,
    W_I: tl.constexpr, BIASED: tl.constexpr, INTERLEAVED: tl.constexpr, CLAMPED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr,
    EVEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: rows of gate and up by turns, of one expert of one token; a pair gives one output. The token has a tile
    of rows to itself."""
    pair = tl.program_id(1)
    row, slot = pair // TOP, pair % TOP
    turn_O = tl.arange(0, BLOCK_O)
    outputs_O = (tl.program_id(0) * BLOCK_O + turn_O) // 2
    inside_O = outputs_O < OUT
    place_O = 2 * outputs_O + turn_O % 2 if INTERLEAVED else outputs_O + OUT * (turn_O % 2)
    wait_before_next(PDL)
    expert, _ = choice(scores, correction, row, slot, X, TOP, ROUTING, BLOCK_X)
    rows_R = row + tl.arange(0, BLOCK_R)
    inside_R = rows_R < row + 1
    mean_R, scale_R = mean_and_scale(moments, rows_R, row + 1, eps, IN, NORM, WIDTH, BLOCK_T)
    w_O = w + expert.to(tl.int64) * w_expert + place_O * W_O
    bias_O = tl.load(b + expert * (2 * OUT) + place_O, mask=inside_O & BIASED, other=0.0).to(tl.float32)
    y_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    for depth in range(0, IN, BLOCK_I):
        depth_I = depth + tl.arange(0, BLOCK_I)
        inside_OI = inside_O[:, None] & (EVEN | (depth_I < IN)[None, :])
        w_OI = tl.load(w_O[:, None] + (depth_I * W_I)[None, :], mask=inside_OI, other=0.0)
        y_OR = add_columns(
            y_OR, w_OI, x, IN, depth_I, rows_R, inside_R, mean_R, scale_R, norm, shift, NORM, EVEN
        )
    y_OR += bias_O[:, None]
    gate_OR, up_OR = tl.split(tl.permute(tl.reshape(y_OR, (BLOCK_O // 2, 2, BLOCK_R)), (0, 2, 1)))
    if CLAMPED:
        gate_OR, up_OR = tl.minimum(gate_OR, limit), tl.minimum(tl.maximum(up_OR, -limit), limit)
        y_OR = (up_OR + 1.0) * gate_OR * tl.sigmoid(gate_OR * alpha)
    else:
        y_OR = activate_tile(gate_OR, ACTIVATION) * up_OR
    half_O = tl.program_id(0) * (BLOCK_O // 2) + tl.arange(0, BLOCK_O // 2)
    at_OR = y + (pair * OUT + half_O)[:, None] + tl.zeros((1, BLOCK_R), tl.int32)
    tl.store(at_OR, y_OR.to(y.dtype.element_ty), mask=(half_O < OUT)[:, None] & inside_R[None, :])


@jit
def _down(
    x, a, scores, correction, w, w_expert, b, y, moments, partial, arrived,
    IN: tl.constexpr, OUT: tl.constexpr, X: tl.constexpr, TOP: tl.constexpr, ROUTING: tl.constexpr, W_O: tl.constexpr,
    W_I: tl.constexpr, PARTS: tl.constexpr, BIASED: tl.constexpr, EVEN: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: some outputs of one expert of one token, one of PARTS of its depth. All that belong to a token's outputs
    meet in the last of them."""
    split, row = tl.program_id(1), tl.program_id(2)
    slot, part = split // PARTS, split % PARTS
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = row + tl.arange(0, BLOCK_R)
    inside_O, inside_R = outputs_O < OUT, rows_R < row + 1
    inside = inside_O[:, None] & inside_R[None, :]
    steps: tl.constexpr = (IN + BLOCK_I - 1) // BLOCK_I
    begin, end = steps * part // PARTS, steps * (part + 1) // PARTS
    # The scores were there when the kernel before this one was set up (`wait_before_next`): weights are read ahead of it.
    expert, share = choice(scores, correction, row, slot, X, TOP, ROUTING, BLOCK_X)
    w_O = w + expert.to(tl.int64) * w_expert + outputs_O * W_O
    ahead_A = begin * BLOCK_I + tl.arange(0, AHEAD)
    within_A = ahead_A < tl.minimum(end * BLOCK_I, IN)
    w_OA = tl.load(
        w_O[:, None] + (ahead_A * W_I)[None, :], mask=inside_O[:, None] & within_A[None, :], other=0.0
    )
    bias_O = tl.load(
        b + expert * OUT + outputs_O, mask=tl.where(part == 0, inside_O & BIASED, False), other=0.0
    )
    wait_for_previous(PDL)
    a_R = a + (row * TOP + slot) * IN + tl.zeros((BLOCK_R,), tl.int32)
    sum_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    for step in range(tl.minimum(begin + AHEAD // BLOCK_I, end), end):
        depth_I = step * BLOCK_I + tl.arange(0, BLOCK_I)
        within_I = EVEN | (depth_I < IN)
        w_OI = tl.load(
            w_O[:, None] + (depth_I * W_I)[None, :], mask=inside_O[:, None] & within_I[None, :], other=0.0
        )
        a_IR = tl.load(a_R[None, :] + depth_I[:, None], mask=within_I[:, None] & inside_R[None, :], other=0.0)
        sum_OR = tl.dot(w_OI, a_IR, sum_OR, input_precision="ieee")
    a_AR = tl.load(a_R[None, :] + ahead_A[:, None], mask=within_A[:, None] & inside_R[None, :], other=0.0)
    sum_OR = tl.dot(w_OA, a_AR, sum_OR, input_precision="ieee")
    sum_OR = (sum_OR + bias_O.to(tl.float32)[:, None]) * share
    place_OR = rows_R[None, :] * OUT + outputs_O[:, None]
    if split == 0:
        sum_OR += tl.load(x + place_OR, mask=inside, other=0.0).to(tl.float32)
    ticket = arrived + row * tl.num_programs(0) + tl.program_id(0)
    size = tl.num_programs(2) * OUT
    last, sum_OR = merge_splits(sum_OR, partial, ticket, place_OR, inside, split, size, TOP * PARTS)
    if last:
        y_OR = sum_OR.to(y.dtype.element_ty)
        tl.store(y + place_OR, y_OR, mask=inside)
        store_moments(y_OR, moments, rows_R, inside, inside_R, OUT, BLOCK_O)


def tiles_of(matrix_XOI: torch.Tensor) -> tuple[Tile, Tile]:
    """For gate and up, and for down: one program of `_down` has WIDTH outputs, whose moments it writes. Measured on an H200."""
    if matrix_XOI.element_size() > 2:
        return Tile(outputs=64, depth=64, warps=4, stages=3), Tile(outputs=WIDTH, depth=64, warps=4, stages=3)
    if matrix_XOI.stride(2) == 1:
        return Tile(outputs=64, depth=128, warps=8, stages=4), Tile(
            outputs=WIDTH, depth=128, warps=4, stages=4
        )
    return Tile(outputs=64, depth=64, warps=4, stages=6), Tile(outputs=WIDTH, depth=64, warps=4, stages=6)


def experts(
    x: Residual, norm: Norm, experts: Experts, activation: str, onto: Residual | None = None
) -> Residual:
    """`experts_plain` in three launches; the moments of the new residual stream beside it. `down` comes right behind `gate_up`,
    and `gate_up` behind what gives the scores."""
    scores_NX = route(x, norm, experts)
    fed_PI = gate_up(x, norm, experts, activation, scores_NX)
    return down(onto or x, experts, scores_NX, fed_PI)


#: Experts of one program of `_route`.
ROUTED = 2


def route(x: Residual, norm: Norm, experts: Experts) -> torch.Tensor:
    """The scores [N, X]: of each expert, for each row."""
    router, (N, E) = experts.router, x.x_NE.shape
    X = len(router.weight_OI)
    scores_NX = x.x_NE.new_empty(N, X, dtype=torch.float32 if experts.routing.wide else x.x_NE.dtype)
    _route[(ceil_div(X, ROUTED),)](
        x.x_NE, x.moments_N2T, norm.weight_E, norm.shift_E, norm.eps,
        router.weight_OI, scores_NX if router.bias_O is None else router.bias_O, scores_NX, N,
        E, X, router.bias_O is not None, norm.kind, WIDTH, power_of_two(ceil_div(E, WIDTH)), ROUTED, power_of_two(E),
        num_warps=8 if E > 2048 else 4, **launch_options(),
    )  # fmt: skip
    return scores_NX


def gate_up(
    x: Residual,
    norm: Norm,
    experts: Experts,
    activation: str,
    scores_NX: torch.Tensor,
    tile: Tile | None = None,
) -> torch.Tensor:
    """[P, I]: what goes into the down projections of the chosen experts, token by token."""
    (N, E), (X, both, _), w_XOE = x.x_NE.shape, experts.gate_up_XOE.shape, experts.gate_up_XOE
    fed_PI = x.x_NE.new_empty(N * experts.top, both // 2)
    tile = tile or tiles_of(w_XOE)[0]
    bias, (alpha, limit) = experts.gate_up_bias_XO, experts.clamp or (0.0, 0.0)
    depth, routing = tile.fitted(E), experts.routing
    _gate_up[(ceil_div(both, tile.outputs), N * experts.top)](
        x.x_NE, x.moments_N2T, norm.weight_E, norm.shift_E, norm.eps, scores_NX,
        scores_NX if routing.bias_X is None else routing.bias_X, w_XOE, w_XOE.stride(0), fed_PI if bias is None else bias, fed_PI, alpha, limit,
        E, both // 2, X, experts.top, routing_constants(routing), w_XOE.stride(1), w_XOE.stride(2),
        bias is not None, experts.interleaved, experts.clamp is not None, activation, norm.kind,
        E % depth == 0, WIDTH, power_of_two(ceil_div(E, WIDTH)), power_of_two(X), tile.outputs,
        depth, tile.rows, num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return fed_PI


def down(
    x: Residual, experts: Experts, scores_NX: torch.Tensor, fed_PI: torch.Tensor, tile: Tile | None = None
) -> Residual:
    """The new residual stream, with its moments."""
    (N, E), (X, _, IN), w_XEI, device = x.x_NE.shape, experts.down_XEI.shape, experts.down_XEI, x.x_NE.device
    tile = tile or tiles_of(w_XEI)[1]
    depth = tile.fitted(IN)
    tiles, steps = ceil_div(E, tile.outputs), ceil_div(IN, depth)
    parts = max(1, min(AT_ONCE * multiprocessors(device) // (tiles * experts.top), steps // STEPS))
    splits = experts.top * parts
    y_NE, bias, routing = torch.empty_like(x.x_NE), experts.down_bias_XE, experts.routing
    moments_N2T = torch.empty(N, 2, tiles, dtype=torch.float32, device=device)
    partial_SNE = torch.empty(splits, N, E, dtype=torch.float32, device=device)
    _down[(tiles, splits, N)](
        x.x_NE, fed_PI, scores_NX, scores_NX if routing.bias_X is None else routing.bias_X, w_XEI, w_XEI.stride(0), y_NE if bias is None else bias, y_NE, moments_N2T, partial_SNE,
        tickets(tiles * N, device),
        IN, E, X, experts.top, routing_constants(routing), w_XEI.stride(1), w_XEI.stride(2),
        parts, bias is not None, IN % depth == 0, power_of_two(X),
        tile.outputs, *tile.options(y_NE, depth), num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return Residual(y_NE, moments_N2T)
