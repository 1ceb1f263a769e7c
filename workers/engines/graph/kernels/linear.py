"""Up to three matrices of one depth, read in one launch: y = act(norm(x) W^T + b), each with its own norm, bias and
activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, multiprocessors, power_of_two, tl
from workers.engines.graph.kernels.norm import apply, norm_plain, norm_rows
from workers.engines.graph.kernels.residual import WIDTH, Residual, mean_and_scale
from workers.engines.graph.kernels.tiles import activate as activate_tile
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Linear, Norm
from workers.engines.shared.rope import working


@dataclass(frozen=True, slots=True)
class Job:
    norm: Norm
    linear: Linear
    activation: str | None = None


def linear_plain(
    x: Residual,
    jobs: tuple[Job, ...],
    normed: Callable[[torch.Tensor, Norm], torch.Tensor] = norm_plain,
) -> tuple[torch.Tensor, ...]:
    """One [N, OUT] per job."""
    normed_NE = {id(job.norm): normed(x.x_NE, job.norm) for job in jobs}
    return tuple(
        activate(
            functional.linear(normed_NE[id(job.norm)], job.linear.weight_OI, job.linear.bias_O),
            job.activation,
        )
        for job in jobs
    )


def linear_rows(x: Residual, jobs: tuple[Job, ...]) -> tuple[torch.Tensor, ...]:
    """`linear_plain` for many rows, which are cuBLAS's to multiply."""
    return linear_plain(x, jobs, norm_rows)


def head_plain(x: Residual, norm: Norm, head: Linear) -> torch.Tensor:
    """Logits [N, V] in working precision."""
    normed_NE = norm_plain(x.x_NE, norm)
    return functional.linear(normed_NE, head.weight_OI, head.bias_O).to(working(normed_NE.dtype))


def activate(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    match activation:
        case "gelu":
            return functional.gelu(y)
        case "tanh":
            return functional.gelu(y, approximate="tanh")
        case "silu":
            return functional.silu(y)
        case "relu":
            return functional.relu(y)
    return y


@dataclass(frozen=True, slots=True)
class Tile:
    """`outputs` rows of a matrix by `depth` of its columns at a time; `rows` tokens are padded to.

    `ahead` bytes of each row are read into registers while the kernels before still run.
    """

    outputs: int
    depth: int
    warps: int
    stages: int
    rows: int = 16
    ahead: int = 512

    def fitted(self, depth: int) -> int:
        """Columns at a time, of a matrix of `depth` columns."""
        return min(self.depth, max(16, power_of_two(depth)))

    def options(self, x: torch.Tensor, depth: int) -> tuple[int, ...]:
        """Constants of a kernel: columns at a time, tokens, columns ahead."""
        ahead = max(depth, self.ahead // x.element_size() // depth * depth)
        return depth, self.rows, ahead


def tile_of(outputs: int, device: torch.device) -> Tile:
    """For `outputs` rows of a matrix: so that all programs run at once, with as many bytes on their way as then fit.

    One program more than run at once costs as much as twice as many. The stages set how many fit a multiprocessor: with
    four, three; with five, two. Where rows are too few for that, programs are smaller. Measured on an H100.
    """
    at_once = ceil_div(outputs, 64) / multiprocessors(device)
    if at_once <= 1:
        return Tile(outputs=16, depth=256, warps=2, stages=4)
    if 2 < at_once <= 3:
        return Tile(outputs=64, depth=64, warps=4, stages=4, ahead=256)
    return Tile(outputs=64, depth=64, warps=4, stages=4 if at_once > 4 else 5)


@jit
def load_ahead(
    w_O, inside_O, from_depth, to_depth, AHEAD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """[BLOCK_O, AHEAD]: the first columns of the rows at `w_O`, read before the kernels before this one are done."""
    ahead_A = from_depth + tl.arange(0, AHEAD)
    if PDL:
        w_OA = tl.load(
            w_O[:, None] + ahead_A[None, :], mask=inside_O[:, None] & (ahead_A < to_depth)[None, :], other=0.0
        )
    else:
        w_OA = tl.zeros((w_O.shape[0], AHEAD), w_O.dtype.element_ty)
    return w_OA


@jit
def add_columns(
    sum_OR, w_OI, x, IN, depth_I, rows_R, inside_R, mean_R, scale_R, weight, bias,
    NORM: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The sum with the products of some columns added: norm(x) at those columns is made here."""
    inside_IR = inside_R[None, :] & (EVEN | (depth_I < IN)[:, None])
    x_IR = tl.load(x + rows_R[None, :] * IN + depth_I[:, None], mask=inside_IR, other=0.0)
    weight_I = tl.load(weight + depth_I, mask=EVEN | (depth_I < IN), other=0.0)
    bias_I = tl.load(bias + depth_I, mask=EVEN | (depth_I < IN), other=0.0)
    x_IR = apply(x_IR, mean_R[None, :], scale_R[None, :], weight_I[:, None], bias_I[:, None], NORM)
    return tl.dot(w_OI, x_IR, sum_OR, input_precision="ieee")


@jit
def product(
    sum_OR, w_OA, w_O, inside_O, x, rows_R, rows, IN, mean_R, scale_R, weight, bias,
    NORM: tl.constexpr, EVEN: tl.constexpr, BLOCK_I: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`sum_OR` + w norm(x)^T; the columns at hand in `w_OA` come last. A row's sum does not depend on how many rows
    there are: plain and speculative decoding round alike."""
    inside_R = rows_R < rows
    for depth in range(AHEAD if PDL else 0, IN, BLOCK_I):
        depth_I = depth + tl.arange(0, BLOCK_I)
        inside_OI = inside_O[:, None] & (EVEN | (depth_I < IN)[None, :])
        w_OI = tl.load(w_O[:, None] + depth_I[None, :], mask=inside_OI, other=0.0)
        sum_OR = add_columns(
            sum_OR, w_OI, x, IN, depth_I, rows_R, inside_R, mean_R, scale_R, weight, bias, NORM, EVEN
        )
    if PDL:
        sum_OR = add_columns(
            sum_OR,
            w_OA,
            x,
            IN,
            tl.arange(0, AHEAD),
            rows_R,
            inside_R,
            mean_R,
            scale_R,
            weight,
            bias,
            NORM,
            False,
        )
    return sum_OR


@jit(do_not_specialize=["rows", "biased"])
def _linear(
    x, moments, w0, b0, y0, out0, norm0, shift0, eps0, w1, b1, y1, out1, norm1, shift1, eps1,
    w2, b2, y2, out2, norm2, shift2, eps2, biased, rows,
    IN: tl.constexpr, JOBS: tl.constexpr,
    ACTIVATION0: tl.constexpr, ACTIVATION1: tl.constexpr, ACTIVATION2: tl.constexpr, NORM: tl.constexpr,
    EVEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    job = 0
    w, b, y, out_of, norm, shift, eps = w0, b0, y0, out0, norm0, shift0, eps0
    # Chosen before one loop for all: a loop in each branch would double the shared memory.
    if JOBS > 1:  # noqa: SIM102  (decided when compiled; the next one on the device)
        if tile >= tl.cdiv(out0, BLOCK_O):
            tile -= tl.cdiv(out0, BLOCK_O)
            job = 1
            w, b, y, out_of, norm, shift, eps = w1, b1, y1, out1, norm1, shift1, eps1
    if JOBS > 2:  # noqa: SIM102
        if (job == 1) & (tile >= tl.cdiv(out1, BLOCK_O)):
            tile -= tl.cdiv(out1, BLOCK_O)
            job = 2
            w, b, y, out_of, norm, shift, eps = w2, b2, y2, out2, norm2, shift2, eps2
    outputs_O = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_O = outputs_O < out_of
    w_O = w + outputs_O.to(tl.int64) * IN
    w_OA = load_ahead(w_O, inside_O, 0, IN, AHEAD, PDL)
    bias_O = tl.load(b + outputs_O, mask=tl.where(((biased >> job) & 1) == 1, inside_O, False), other=0.0)
    wait_for_previous(PDL)
    mean_R, scale_R = mean_and_scale(moments, rows_R, rows, eps, IN, NORM, WIDTH, BLOCK_T)
    y_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    y_OR = product(
        y_OR, w_OA, w_O, inside_O, x, rows_R, rows, IN, mean_R, scale_R, norm, shift,
        NORM, EVEN, BLOCK_I, AHEAD, PDL,
    )  # fmt: skip
    y_OR += bias_O.to(tl.float32)[:, None]
    if ACTIVATION0 == ACTIVATION1 and ACTIVATION0 == ACTIVATION2:
        y_OR = activate_tile(y_OR, ACTIVATION0)
    else:
        if job == 0:
            y_OR = activate_tile(y_OR, ACTIVATION0)
        elif job == 1:
            y_OR = activate_tile(y_OR, ACTIVATION1)
        else:
            y_OR = activate_tile(y_OR, ACTIVATION2)
    inside = inside_O[:, None] & (rows_R < rows)[None, :]
    tl.store(y + rows_R[None, :] * out_of + outputs_O[:, None], y_OR.to(y.dtype.element_ty), mask=inside)


def linear(x: Residual, jobs: tuple[Job, ...], tile: Tile | None = None) -> tuple[torch.Tensor, ...]:
    """`linear_plain` in one launch, for one to three jobs of equal depth IN."""
    outs = tuple(x.x_NE.new_empty(x.x_NE.shape[0], job.linear.weight_OI.shape[0]) for job in jobs)
    _launch(x, jobs, outs, tile)
    return outs


def head(x: Residual, norm: Norm, head: Linear, tile: Tile | None = None) -> torch.Tensor:
    """`head_plain`: float32 logits, never rounded to the model's dtype."""
    N, V = x.x_NE.shape[0], head.weight_OI.shape[0]
    logits_NV = x.x_NE.new_empty(N, V, dtype=torch.float32)
    _launch(x, (Job(norm, head),), (logits_NV,), tile)
    return logits_NV


def _launch(x: Residual, jobs: tuple[Job, ...], outs: tuple[torch.Tensor, ...], tile: Tile | None) -> None:
    N, IN = x.x_NE.shape
    tile = tile or tile_of(sum(out.shape[1] for out in outs), x.x_NE.device)
    args: list[torch.Tensor | int | float] = []
    activations, tiles, biased = [], 0, 0
    for index in range(3):
        job, out = (jobs[index], outs[index]) if index < len(jobs) else (jobs[0], outs[0])
        bias, norm = job.linear.bias_O, job.norm
        args += [
            job.linear.weight_OI,
            out if bias is None else bias,
            out,
            out.shape[1],
            norm.weight_E,
            norm.shift_E,
            norm.eps,
        ]
        activations.append(job.activation)
        biased |= (bias is not None) << index
        tiles += ceil_div(out.shape[1], tile.outputs) if index < len(jobs) else 0
    depth = tile.fitted(IN)
    _linear[(tiles, ceil_div(N, tile.rows))](
        x.x_NE, x.moments_N2T, *args, biased, N, IN, len(jobs), *activations, jobs[0].norm.kind, IN % depth == 0,
        WIDTH, power_of_two(ceil_div(IN, WIDTH)), tile.outputs, *tile.options(x.x_NE, depth),
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
