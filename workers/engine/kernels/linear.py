"""Up to three matrices read in one launch: y = act(x W^T + b), each with its own x, bias and activation."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engine.kernels.jit import ceil_div, jit, power_of_two, tl
from workers.engine.kernels.tiles import activate as activate_tile
from workers.engine.rope import working
from workers.engine.weights import Linear


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


TILE = Tile(outputs=16, depth=256, warps=4, stages=3)


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
    IN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """[BLOCK_O, BLOCK_R] of w x^T over columns `from_depth .. to_depth`. A row's sum does not depend on how many
    rows there are: plain and speculative decoding round alike."""
    sum_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    w_O = w + outputs_O.to(tl.int64) * IN
    x_R = x + rows_R * IN
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
    return sum_OR


@jit
def _job(
    x, w, b, y, tile, OUT, rows, IN: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    outputs_O = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    y_OR = product(x, w, outputs_O, OUT, rows_R, rows, 0, IN, IN, EVEN, BLOCK_O, BLOCK_I, BLOCK_R)
    if BIAS:
        y_OR += tl.load(b + outputs_O, mask=outputs_O < OUT, other=0.0).to(tl.float32)[:, None]
    y_OR = activate_tile(y_OR, ACTIVATION)
    inside = (outputs_O < OUT)[:, None] & (rows_R < rows)[None, :]
    tl.store(y + rows_R[None, :] * OUT + outputs_O[:, None], y_OR.to(y.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["rows"])
def _linear(
    x0, w0, b0, y0, OUT0, x1, w1, b1, y1, OUT1, x2, w2, b2, y2, OUT2, rows,
    IN: tl.constexpr, JOBS: tl.constexpr,
    BIAS0: tl.constexpr, BIAS1: tl.constexpr, BIAS2: tl.constexpr,
    ACTIVATION0: tl.constexpr, ACTIVATION1: tl.constexpr, ACTIVATION2: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    tiles0 = tl.cdiv(OUT0, BLOCK_O)
    if JOBS == 1:
        _job(x0, w0, b0, y0, tile, OUT0, rows, IN, BIAS0, ACTIVATION0, EVEN, BLOCK_O, BLOCK_I, BLOCK_R)
    else:
        tiles1 = tl.cdiv(OUT1, BLOCK_O)
        if tile < tiles0:
            _job(x0, w0, b0, y0, tile, OUT0, rows, IN, BIAS0, ACTIVATION0, EVEN, BLOCK_O, BLOCK_I, BLOCK_R)
        elif tile < tiles0 + tiles1:
            _job(
                x1,
                w1,
                b1,
                y1,
                tile - tiles0,
                OUT1,
                rows,
                IN,
                BIAS1,
                ACTIVATION1,
                EVEN,
                BLOCK_O,
                BLOCK_I,
                BLOCK_R,
            )
        elif JOBS == 3:
            _job(
                x2, w2, b2, y2, tile - tiles0 - tiles1, OUT2, rows, IN, BIAS2, ACTIVATION2, EVEN,
                BLOCK_O, BLOCK_I, BLOCK_R,
            )  # fmt: skip


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


def _launch(jobs: tuple[Job, ...], outs: tuple[torch.Tensor, ...], tile: Tile) -> None:
    N, IN = jobs[0].x_NI.shape
    args: list[torch.Tensor | int] = []
    biases, activations, tiles = [], [], 0
    for index in range(3):
        job, out = (jobs[index], outs[index]) if index < len(jobs) else (jobs[0], outs[0])
        bias = job.linear.bias_O
        args += [job.x_NI, job.linear.weight_OI, out if bias is None else bias, out, out.shape[1]]
        biases.append(bias is not None)
        activations.append(job.activation)
        tiles += ceil_div(out.shape[1], tile.outputs) if index < len(jobs) else 0
    depth = min(tile.depth, max(16, power_of_two(IN)))
    _linear[(tiles, ceil_div(N, tile.rows))](
        *args, N, IN, len(jobs), *biases, *activations, IN % depth == 0, tile.outputs, depth, tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
