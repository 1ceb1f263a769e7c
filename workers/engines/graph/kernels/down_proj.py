"""Back to the residual's width: x plus one or two products a W^T, with their biases."""

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import (
    ceil_div,
    jit,
    launch_options,
    multiprocessors,
    power_of_two,
    tickets,
    tl,
)
from workers.engines.graph.kernels.linear import Tile, load_ahead
from workers.engines.graph.kernels.residual import WIDTH, Residual
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Linear
from workers.engines.shared.rope import working

Parts = tuple[tuple[torch.Tensor, Linear], ...]


def down_proj_plain(x: Residual | None, parts: Parts, scale: float = 1.0) -> Residual:
    """The new residual stream, rounded once: `scale` times the products, added to x. `x` None: the products alone."""
    dtype = parts[0][0].dtype
    total: torch.Tensor | float = 0.0
    for part_NI, linear in parts:
        total = total + functional.linear(part_NI, linear.weight_OI).to(working(dtype))
        if linear.bias_O is not None:
            total = total + linear.bias_O
    total = total * scale
    if x is not None:
        total = x.x_NE.to(working(dtype)) + total
    assert isinstance(total, torch.Tensor)
    return Residual(total.to(dtype))


@jit
def _add(x, y0, y1, b0, b1, out, scale, E: tl.constexpr, ADDS: tl.constexpr, PARTS: tl.constexpr,
         BIASED0: tl.constexpr, BIASED1: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    total = tl.load(y0 + row * E + e, mask=e < E, other=0.0).to(tl.float32)
    if PARTS == 2:
        total += tl.load(y1 + row * E + e, mask=e < E, other=0.0).to(tl.float32)
    if BIASED0:
        total += tl.load(b0 + e, mask=e < E, other=0.0).to(tl.float32)
    if BIASED1:
        total += tl.load(b1 + e, mask=e < E, other=0.0).to(tl.float32)
    total *= scale
    if ADDS:
        total += tl.load(x + row * E + e, mask=e < E, other=0.0).to(tl.float32)
    tl.store(out + row * E + e, total.to(out.dtype.element_ty), mask=e < E)


def down_proj_rows(x: Residual | None, parts: Parts, scale: float = 1.0) -> Residual:
    """`down_proj_plain` for many rows, which are cuBLAS's to multiply; their sum is one launch."""
    ys = [functional.linear(part_NI, linear.weight_OI) for part_NI, linear in parts]
    biases = [linear.bias_O for _, linear in parts]
    (N, E), out_NE = ys[0].shape, torch.empty_like(ys[0])
    _add[(N,)](
        out_NE if x is None else x.x_NE, ys[0], ys[-1], *(out_NE if bias is None else bias for bias in (biases[0], biases[-1])), out_NE, scale,
        E, x is not None, len(parts), biases[0] is not None, len(parts) == 2 and biases[-1] is not None, power_of_two(E),
        num_warps=4, **launch_options(),
    )  # fmt: skip
    return Residual(out_NE)


#: Programs at most of a multiprocessor, where outputs alone are fewer: the summed axis is cut into splits. All run at once.
AT_ONCE = 2
#: Of the loop over the depth that a split has at least.
STEPS = 4


@jit
def _add_split(
    sum_OR, w0_O, a0, in0, w1_O, a1, in1, steps0, begin, end, rows_R, inside_O, inside_R,
    PARTS: tl.constexpr, EVEN: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """The sum with the products of steps `begin .. end` added, of both matrices laid end to end."""
    for step in range(begin, end):
        w_O, a, depth, IN = w0_O, a0, step * BLOCK_I, in0
        if PARTS == 2:
            later = step >= steps0
            w_O, a = tl.where(later, w1_O, w0_O), tl.where(later, a1, a0)
            depth, IN = tl.where(later, step - steps0, step) * BLOCK_I, tl.where(later, in1, in0)
        depth_I = depth + tl.arange(0, BLOCK_I)
        w_OI = tl.load(
            w_O[:, None] + depth_I[None, :],
            mask=inside_O[:, None] & (EVEN | (depth_I < IN)[None, :]),
            other=0.0,
        )
        a_IR = tl.load(
            a + rows_R[None, :] * IN + depth_I[:, None], mask=inside_R[None, :] & (EVEN | (depth_I < IN)[:, None]),
            other=0.0,
        )  # fmt: skip
        sum_OR = tl.dot(w_OI, a_IR, sum_OR, input_precision="ieee")
    return sum_OR


@jit
def merge_splits(sum_OR, partial, ticket, place_OR, inside, split, size, SPLITS: tl.constexpr):
    """The splits meet in the program that comes last, in their order, whichever that is.

    Whether it is this one, and the sum. `size`: numbers of one split in `partial`.
    """
    last = True
    if SPLITS > 1:
        tl.store(partial + split * size + place_OR, sum_OR, mask=inside)
        tl.debug_barrier()
        last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if last:
            tl.debug_barrier()
            sum_OR = tl.zeros(sum_OR.shape, tl.float32)
            for other in tl.static_range(SPLITS):
                sum_OR += tl.load(
                    partial + other * size + place_OR, mask=inside, other=0.0, cache_modifier=".cg"
                )
            tl.store(ticket, 0)
    return last, sum_OR


@jit
def store_moments(y_OR, moments, rows_R, inside, inside_R, OUT, BLOCK_O: tl.constexpr):
    """Of the outputs of one program in each row, as they are stored: their mean, and the squares of what is away from it."""
    y_OR = tl.where(inside, y_OR.to(tl.float32), 0.0)
    mean_R = tl.sum(y_OR, axis=0) / tl.minimum(OUT - tl.program_id(0) * BLOCK_O, BLOCK_O)
    away_OR = tl.where(inside, y_OR - mean_R[None, :], 0.0)
    at_R = moments + rows_R * (2 * tl.num_programs(0)) + tl.program_id(0)
    tl.store(at_R, mean_R, mask=inside_R)
    tl.store(at_R + tl.num_programs(0), tl.sum(away_OR * away_OR, axis=0), mask=inside_R)


@jit(do_not_specialize=["rows"])
def _down_proj(
    x, a0, w0, a1, w1, b0, b1, y, moments, partial, arrived, scale, OUT, rows, in0, in1,
    ADDS: tl.constexpr, SCALED: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, BIASED0: tl.constexpr, BIASED1: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: some outputs, one split of the depths of both matrices laid end to end."""
    split = tl.program_id(1)
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_O, inside_R = outputs_O < OUT, rows_R < rows
    inside = inside_O[:, None] & inside_R[None, :]
    w0_O, w1_O = w0 + outputs_O.to(tl.int64) * in0, w1 + outputs_O.to(tl.int64) * in1
    steps0 = tl.cdiv(in0, BLOCK_I)
    steps = steps0
    if PARTS == 2:
        steps += tl.cdiv(in1, BLOCK_I)
    begin, end = steps * split // SPLITS, steps * (split + 1) // SPLITS

    # What comes first is read ahead, as far as it lies in one matrix.
    second = begin >= steps0
    first_w_O, first_a = tl.where(second, w1_O, w0_O), tl.where(second, a1, a0)
    from_depth, first_in = tl.where(second, begin - steps0, begin) * BLOCK_I, tl.where(second, in1, in0)
    until = tl.where(second, end, tl.minimum(end, steps0))
    to_depth = tl.minimum(first_in, from_depth + (until - begin) * BLOCK_I)
    w_OA = load_ahead(first_w_O, inside_O, from_depth, to_depth, AHEAD, PDL)
    sum_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    bias_O = tl.zeros((BLOCK_O,), tl.float32)
    if BIASED0:
        bias_O += tl.load(b0 + outputs_O, mask=inside_O, other=0.0).to(tl.float32)
    if BIASED1:
        bias_O += tl.load(b1 + outputs_O, mask=inside_O, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    place_OR = rows_R[None, :] * OUT + outputs_O[:, None]
    if split == 0:
        sum_OR += bias_O[:, None]
        if ADDS:
            x_OR = tl.load(x + place_OR, mask=inside, other=0.0).to(tl.float32)
            sum_OR += x_OR / scale if SCALED else x_OR
    if PDL:
        begin = tl.minimum(begin + AHEAD // BLOCK_I, until)
    sum_OR = _add_split(
        sum_OR, w0_O, a0, in0, w1_O, a1, in1, steps0, begin, end, rows_R, inside_O, inside_R, PARTS, EVEN, BLOCK_I
    )  # fmt: skip
    if PDL:
        ahead_A = from_depth + tl.arange(0, AHEAD)
        a_AR = tl.load(
            first_a + rows_R[None, :] * first_in + ahead_A[:, None],
            mask=inside_R[None, :] & (ahead_A < to_depth)[:, None],
            other=0.0,
        )
        sum_OR = tl.dot(w_OA, a_AR, sum_OR, input_precision="ieee")
    ticket = arrived + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    last, sum_OR = merge_splits(sum_OR, partial, ticket, place_OR, inside, split, rows * OUT, SPLITS)
    if last:
        if SCALED:
            sum_OR *= scale
        y_OR = sum_OR.to(y.dtype.element_ty)
        tl.store(y + place_OR, y_OR, mask=inside)
        store_moments(y_OR, moments, rows_R, inside, inside_R, OUT, BLOCK_O)


#: One program has WIDTH outputs, whose moments it writes.
TILE = Tile(outputs=WIDTH, depth=64, warps=4, stages=5)


def down_proj(x: Residual | None, parts: Parts, scale: float = 1.0, tile: Tile = TILE) -> Residual:
    """`down_proj_plain` in one launch; the moments of the new residual stream beside it."""
    (a0, linear0), (a1, linear1) = parts[0], parts[-1]
    N, OUT, device = len(a0), linear0.weight_OI.shape[0], a0.device
    depths = [a.shape[1] for a, _ in parts]
    depth = tile.fitted(min(depths))
    tiles, row_tiles = ceil_div(OUT, tile.outputs), ceil_div(N, tile.rows)
    steps = sum(ceil_div(IN, depth) for IN in depths)
    splits = max(1, min(AT_ONCE * multiprocessors(device) // tiles, steps // STEPS))
    y_NE = torch.empty(N, OUT, dtype=a0.dtype, device=device)
    moments_N2T = torch.empty(N, 2, tiles, dtype=torch.float32, device=device)
    partial_SNE = torch.empty(splits, N, OUT, dtype=torch.float32, device=device) if splits > 1 else y_NE
    biases = [y_NE if linear.bias_O is None else linear.bias_O for linear in (linear0, linear1)]
    _down_proj[(tiles, splits, row_tiles)](
        y_NE if x is None else x.x_NE, a0, linear0.weight_OI, a1, linear1.weight_OI, *biases, y_NE, moments_N2T, partial_SNE,
        tickets(tiles * row_tiles, device), scale, OUT, N, depths[0], depths[-1],
        x is not None, scale != 1.0, splits, len(parts), linear0.bias_O is not None, len(parts) == 2 and linear1.bias_O is not None,
        all(IN % depth == 0 for IN in depths), tile.outputs, *tile.options(y_NE, depth),
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return Residual(y_NE, moments_N2T)
