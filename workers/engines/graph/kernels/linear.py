"""Up to three matrices read in one launch: y = act(x W^T + b), each with its own x, bias and activation."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import activate as activate_tile
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Linear
from workers.engines.shared.rope import working


@dataclass(frozen=True, slots=True)
class Job:
    x_NI: torch.Tensor
    linear: Linear
    activation: str | None = None


def linear_plain(jobs: tuple[Job, ...]) -> tuple[torch.Tensor, ...]:
    """One [N, OUT] per job."""
    return tuple(
        activate(functional.linear(job.x_NI, job.linear.weight_OI, job.linear.bias_O), job.activation)
        for job in jobs
    )


def head_plain(x_NE: torch.Tensor, head: Linear) -> torch.Tensor:
    """Logits [N, V] in working precision."""
    return functional.linear(x_NE, head.weight_OI, head.bias_O).to(working(x_NE.dtype))


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
    """`outputs` rows of a matrix by `depth` of its columns at a time; `rows` tokens are padded to."""

    outputs: int
    depth: int
    warps: int
    stages: int
    rows: int = 16


#: The fastest over a layer of Pythia-2.8B on an H100. With the bytes read prefetch, three programs fit a multiprocessor.
TILE = Tile(outputs=64, depth=64, warps=4, stages=4)


#: Bytes of each of its rows that a program reads while the kernels before it still run, and multiplies last.
AHEAD_BYTES = 512


@jit
def product(
    x,
    w,
    outputs_O,
    out_of,
    rows_R,
    rows,
    from_depth,
    to_depth,
    IN,
    EVEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """[BLOCK_O, BLOCK_R] of w x^T over columns `from_depth .. to_depth`. A row's sum does not depend on how many
    rows there are: plain and speculative decoding round alike."""
    sum_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    w_O = w + outputs_O.to(tl.int64) * IN
    x_R = x + rows_R * IN
    if PDL:
        ahead_A = from_depth + tl.arange(0, PREFETCH)
        within_A = ahead_A < to_depth
        w_OA = tl.load(
            w_O[:, None] + ahead_A[None, :], mask=(outputs_O < out_of)[:, None] & within_A[None, :], other=0.0
        )
        wait_for_previous(PDL)
        from_depth += PREFETCH
    for depth in range(from_depth, to_depth, BLOCK_I):
        depth_I = depth + tl.arange(0, BLOCK_I)
        if EVEN:
            w_OI = tl.load(w_O[:, None] + depth_I[None, :], mask=(outputs_O < out_of)[:, None], other=0.0)
            x_IR = tl.load(x_R[None, :] + depth_I[:, None], mask=(rows_R < rows)[None, :], other=0.0)
        else:
            inside_I = depth_I < to_depth
            w_OI = tl.load(
                w_O[:, None] + depth_I[None, :],
                mask=(outputs_O < out_of)[:, None] & inside_I[None, :],
                other=0.0,
            )
            x_IR = tl.load(
                x_R[None, :] + depth_I[:, None], mask=(rows_R < rows)[None, :] & inside_I[:, None], other=0.0
            )
        sum_OR = tl.dot(w_OI, x_IR, sum_OR, input_precision="ieee")
    if PDL:
        x_AR = tl.load(
            x_R[None, :] + ahead_A[:, None], mask=(rows_R < rows)[None, :] & within_A[:, None], other=0.0
        )
        sum_OR = tl.dot(w_OA, x_AR, sum_OR, input_precision="ieee")
    return sum_OR


@jit(do_not_specialize=["rows", "biased"])
def _linear(
    x0, w0, b0, y0, out0, x1, w1, b1, y1, out1, x2, w2, b2, y2, out2, biased, rows,
    IN: tl.constexpr, JOBS: tl.constexpr,
    ACTIVATION0: tl.constexpr, ACTIVATION1: tl.constexpr, ACTIVATION2: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    job = 0
    x, w, b, y, out_of = x0, w0, b0, y0, out0
    # Chosen before one loop for all: a loop in each branch would double the shared memory.
    if JOBS > 1:  # noqa: SIM102  (decided when compiled; the next one on the device)
        if tile >= tl.cdiv(out0, BLOCK_O):
            tile -= tl.cdiv(out0, BLOCK_O)
            job = 1
            x, w, b, y, out_of = x1, w1, b1, y1, out1
    if JOBS > 2:  # noqa: SIM102
        if (job == 1) & (tile >= tl.cdiv(out1, BLOCK_O)):
            tile -= tl.cdiv(out1, BLOCK_O)
            job = 2
            x, w, b, y, out_of = x2, w2, b2, y2, out2
    outputs_O = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    y_OR = product(
        x, w, outputs_O, out_of, rows_R, rows, 0, IN, IN, EVEN, BLOCK_O, BLOCK_I, BLOCK_R, PREFETCH, PDL
    )
    has_bias = (biased >> job) & 1
    bias_O = tl.load(b + outputs_O, mask=(outputs_O < out_of) & (has_bias == 1), other=0.0)
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
    inside = (outputs_O < out_of)[:, None] & (rows_R < rows)[None, :]
    tl.store(y + rows_R[None, :] * out_of + outputs_O[:, None], y_OR.to(y.dtype.element_ty), mask=inside)


def linear(jobs: tuple[Job, ...], tile: Tile = TILE) -> tuple[torch.Tensor, ...]:
    """`linear_plain` in one launch, for one to three jobs of equal depth IN."""
    outs = tuple(job.x_NI.new_empty(job.x_NI.shape[0], job.linear.weight_OI.shape[0]) for job in jobs)
    _launch(jobs, outs, tile)
    return outs


def head(x_NE: torch.Tensor, head: Linear, tile: Tile = TILE) -> torch.Tensor:
    """`head_plain`: float32 logits, never rounded to the model's dtype."""
    logits_NV = x_NE.new_empty(x_NE.shape[0], head.weight_OI.shape[0], dtype=torch.float32)
    _launch((Job(x_NE, head),), (logits_NV,), tile)
    return logits_NV


def prefetch(x: torch.Tensor) -> int:
    """Columns of a matrix of `x`'s dtype."""
    return AHEAD_BYTES // x.element_size()


def _launch(jobs: tuple[Job, ...], outs: tuple[torch.Tensor, ...], tile: Tile) -> None:
    N, IN = jobs[0].x_NI.shape
    args: list[torch.Tensor | int] = []
    activations, tiles, biased = [], 0, 0
    for index in range(3):
        job, out = (jobs[index], outs[index]) if index < len(jobs) else (jobs[0], outs[0])
        bias = job.linear.bias_O
        args += [job.x_NI, job.linear.weight_OI, out if bias is None else bias, out, out.shape[1]]
        activations.append(job.activation)
        biased |= (bias is not None) << index
        tiles += ceil_div(out.shape[1], tile.outputs) if index < len(jobs) else 0
    depth = min(tile.depth, max(16, power_of_two(IN)))
    _linear[(tiles, ceil_div(N, tile.rows))](
        *args, biased, N, IN, len(jobs), *activations, IN % depth == 0, tile.outputs, depth, tile.rows, prefetch(jobs[0].x_NI),
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
