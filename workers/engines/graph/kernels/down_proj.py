"""Back to the residual's width: the sum of one or two products x W^T, cut along the summed axis into splits."""

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.linear import TILE, Tile, prefetch, product
from workers.engines.graph.weights import Linear
from workers.engines.shared.rope import working


def down_proj_plain(parts: tuple[tuple[torch.Tensor, Linear], ...]) -> torch.Tensor:
    """[S, N, E] in working precision, one split per part; biases are left to `add_norm`."""
    return torch.stack(
        [functional.linear(x_NI, linear.weight_OI).to(working(x_NI.dtype)) for x_NI, linear in parts]
    )


#: Programs wanted at least: two for each of an H100's 132 multiprocessors, so that all run, and read prefetch, at once.
PROGRAMS = 264


@jit(do_not_specialize=["rows"])
def _down_proj(
    x0, w0, x1, w1, y, OUT, rows,
    IN0, IN1, SPLITS0, SPLIT0, SPLIT1,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(1)
    rows_R = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (outputs_O < OUT)[:, None] & (rows_R < rows)[None, :]
    y_OR = y + (split * rows + rows_R[None, :]) * OUT + outputs_O[:, None]
    # Chosen before one loop for both: a loop in each branch would double the shared memory.
    x, w, depth, begin, length = x0, w0, IN0, split * SPLIT0, SPLIT0
    if split >= SPLITS0:
        x, w, depth, begin, length = x1, w1, IN1, (split - SPLITS0) * SPLIT1, SPLIT1
    end = tl.minimum(begin + length, depth)
    sum_OR = product(
        x, w, outputs_O, OUT, rows_R, rows, begin, end, depth, EVEN, BLOCK_O, BLOCK_I, BLOCK_R, PREFETCH, PDL
    )
    tl.store(y_OR, sum_OR, mask=inside)


def down_proj(parts: tuple[tuple[torch.Tensor, Linear], ...], tile: Tile = TILE) -> torch.Tensor:
    """`down_proj_plain` in one launch, each matrix cut into splits, so that there are programs enough."""
    (x0, linear0), (x1, linear1) = parts[0], parts[-1]
    N, OUT = x0.shape[0], linear0.weight_OI.shape[0]
    depths = [x.shape[1] for x, _ in parts]
    depth = min(tile.depth, max(16, power_of_two(min(depths))))
    wanted = ceil_div(PROGRAMS, ceil_div(OUT, tile.outputs))
    longest = max(depth, ceil_div(sum(depths), wanted))
    counts = [ceil_div(IN, longest) for IN in depths]
    splits = [ceil_div(ceil_div(IN, count), depth) * depth for IN, count in zip(depths, counts, strict=True)]
    counts = [ceil_div(IN, split) for IN, split in zip(depths, splits, strict=True)]
    y_SNO = torch.empty(sum(counts), N, OUT, dtype=torch.float32, device=x0.device)
    _down_proj[(ceil_div(OUT, tile.outputs), sum(counts), ceil_div(N, tile.rows))](
        x0, linear0.weight_OI, x1, linear1.weight_OI, y_SNO, OUT, N,
        depths[0], depths[-1], counts[0], splits[0], splits[-1], all(IN % depth == 0 for IN in depths),
        tile.outputs, depth, tile.rows, prefetch(x0), num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return y_SNO
