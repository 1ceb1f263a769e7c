"""Attention of a prompt's tokens over the full cache, where they are many: a chunk of it, or all of it in one pass."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import strides
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.scores import add_learned, kernel_arguments, scored_tile
from workers.engines.graph.kernels.tiles import load_rotated, wait_for_previous
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention
from workers.engines.sizes import BLOCK


@dataclass(frozen=True, slots=True)
class ChunkTile:
    """`rows` of queries that a program has, a query for each head of a group; `warps`, `stages` of its loads."""

    rows: int
    warps: int
    stages: int


TILE = ChunkTile(rows=128, warps=8, stages=3)
#: Float32 is multiplied without tensor cores, in registers.
TILE_FLOAT32 = ChunkTile(rows=16, warps=4, stages=2)


@jit(do_not_specialize=["M"])
def _rotate(
    x, x_row, x_head, cos, sin, out, M,
    HEADS: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    head, b = tl.program_id(1), tl.program_id(2)
    m = tl.program_id(0) * 16 + tl.arange(0, 16)
    row = (b * M + m).to(tl.int64)
    x_RD = load_rotated(x, row * x_row + head * x_head, m < M, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    place_RD = out + ((row * HEADS + head) * D)[:, None] + d[None, :]
    tl.store(place_RD, x_RD, mask=(m < M)[:, None] & (d < D)[None, :])


def rotate_heads(
    x_BMHD: torch.Tensor, cos_MF: torch.Tensor, sin_MF: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """`rope.rotate` in one launch; contiguous."""
    B, M, H, D = x_BMHD.shape
    out_BMHD = torch.empty(B, M, H, D, dtype=x_BMHD.dtype, device=x_BMHD.device)
    _rotate[(ceil_div(M, 16), H, B)](
        x_BMHD, *strides(x_BMHD), cos_MF, sin_MF, out_BMHD, M, H, D, cos_MF.shape[1], interleaved, max(16, power_of_two(D)),
        num_warps=4, **launch_options(),
    )  # fmt: skip
    return out_BMHD


@jit(do_not_specialize=["M", "layer"])
def _keep_blocks(
    k, v, v_row, v_head, table, layer, start, M,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: what falls into one block, of one key/value head of one sequence."""
    wait_for_previous(PDL)
    head, b = tl.program_id(1), tl.program_id(2)
    first = tl.load(start).to(tl.int32)
    index = first // BLOCK + tl.program_id(0)
    c, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    m = index * BLOCK + c - first
    inside = ((m >= 0) & (m < M))[:, None] & (d < D)[None, :]
    row = (b * M + m).to(tl.int64)
    k_CD = tl.load(k + ((row * K + head) * D)[:, None] + d[None, :], mask=inside, other=0.0)
    v_CD = tl.load(v + (row * v_row + head * v_head)[:, None] + d[None, :], mask=inside, other=0.0)
    if index * BLOCK < first + M:
        block = tl.load(table + index).to(tl.pointer_type(k.dtype.element_ty))
        here = ((layer * 2 * B + b) * K + head).to(tl.int64) * BLOCK * D
        place = block + here + c[:, None] * D + d[None, :]
        tl.store(place, k_CD, mask=inside)
        tl.store(place + B * K * BLOCK * D, v_CD, mask=inside)


def _keep(
    k_BMKD: torch.Tensor, v_BMKD: torch.Tensor, cache: FullCache, layer: int, start: torch.Tensor
) -> None:
    """Write rotated keys, and values, of positions `start .. start + M` of one layer."""
    B, M, K, D = k_BMKD.shape
    _keep_blocks[(ceil_div(M, BLOCK) + 1, K, B)](
        k_BMKD, v_BMKD, *strides(v_BMKD), cache.table, layer, start, M, B, K, D, BLOCK, max(16, power_of_two(D)),
        num_warps=4, **launch_options(),
    )  # fmt: skip


@jit
def _read(
    table, here, to_v, begin, end, first, m, q_RL, q_RH, peak_R, total_R, sum_RL, sum_RH, scale, cap,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr, CAPPED: tl.constexpr,
    ALL_SEEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Blocks `begin .. end`, all of which every row sees (ALL_SEEN) or not."""
    c, low, high = tl.arange(0, BLOCK), tl.arange(0, LOW), LOW + tl.arange(0, HIGH)
    address = tl.load(table + begin)  # read one ahead, so that the loads of a block wait for nothing
    for index in tl.range(begin, end, num_stages=STAGES):
        block = tl.multiple_of(address.to(tl.pointer_type(q_RL.dtype)), 16) + here
        address = tl.load(table + index + 1)
        row_C1 = c[:, None] * D
        within = (low < D)[None, :]
        k_CL = tl.load(block + row_C1 + low[None, :], mask=within, other=0.0)
        v_CL = tl.load(block + to_v + row_C1 + low[None, :], mask=within, other=0.0)
        scores_RC = tl.dot(q_RL, tl.trans(k_CL), input_precision="ieee")
        if LOW < D:
            k_CH = tl.load(block + row_C1 + high[None, :])
            v_CH = tl.load(block + to_v + row_C1 + high[None, :])
            scores_RC = tl.dot(q_RH, tl.trans(k_CH), scores_RC, input_precision="ieee")
        scores_RC = scored_tile(scores_RC, scale, cap, CAPPED) * 1.4426950408889634
        if not ALL_SEEN:
            visible = (index * BLOCK + c)[None, :] <= (first + m)[:, None]
            scores_RC = tl.where(visible, scores_RC, float("-inf"))
        new_peak_R = tl.maximum(peak_R, tl.max(scores_RC, axis=1))
        weight_RC = tl.exp2(scores_RC - new_peak_R[:, None])
        fade_R = tl.exp2(peak_R - new_peak_R)
        total_R = total_R * fade_R + tl.sum(weight_RC, axis=1)
        weight_RC = weight_RC.to(v_CL.dtype)
        sum_RL = tl.dot(weight_RC, v_CL, sum_RL * fade_R[:, None], input_precision="ieee")
        if LOW < D:
            sum_RH = tl.dot(weight_RC, v_CH, sum_RH * fade_R[:, None], input_precision="ieee")
        peak_R = new_peak_R
    return peak_R, total_R, sum_RL, sum_RH


@jit(do_not_specialize=["M", "layer"])
def _attend_chunk(
    q, table, layer, start, out, M, scale, cap, learned,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, CAPPED: tl.constexpr, LEARNED: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows, of adjacent queries and the heads that share one key/value head of one sequence; all that
    they see. A head's D numbers are LOW, a power of two, and HIGH more."""
    wait_for_previous(PDL)
    G: tl.constexpr = H // K
    QUERIES: tl.constexpr = ROWS // G
    group, bk = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)  # the longest first
    b, head = bk // K, bk % K
    first = tl.load(start).to(tl.int32)
    r, low, high = tl.arange(0, ROWS), tl.arange(0, LOW), LOW + tl.arange(0, HIGH)
    m = group * QUERIES + r // G
    asks = (r < QUERIES * G) & (m < M)
    at_R = ((b * M + m).to(tl.int64) * H + head * G + r % G) * D
    inside_RL = asks[:, None] & (low < D)[None, :]
    inside_RH = asks[:, None] & (high < D)[None, :]
    q_RL = tl.load(q + at_R[:, None] + low[None, :], mask=inside_RL, other=0.0)
    q_RH = tl.load(q + at_R[:, None] + high[None, :], mask=inside_RH, other=0.0)
    to_v: tl.constexpr = B * K * BLOCK * D
    here = (layer * 2).to(tl.int64) * to_v + bk * BLOCK * D
    seen = first + tl.minimum(group * QUERIES + QUERIES, M)
    by_all = (first + group * QUERIES + 1) // BLOCK
    peak_R = tl.full((ROWS,), float("-inf"), tl.float32)
    total_R = tl.zeros((ROWS,), tl.float32)
    sum_RL, sum_RH = tl.zeros((ROWS, LOW), tl.float32), tl.zeros((ROWS, HIGH), tl.float32)
    peak_R, total_R, sum_RL, sum_RH = _read(
        table, here, to_v, 0, by_all, first, m, q_RL, q_RH, peak_R, total_R, sum_RL, sum_RH, scale, cap,
        D, LOW, HIGH, BLOCK, CAPPED, True, STAGES,
    )  # fmt: skip
    peak_R, total_R, sum_RL, sum_RH = _read(
        table, here, to_v, by_all, tl.cdiv(seen, BLOCK), first, m, q_RL, q_RH, peak_R, total_R, sum_RL, sum_RH, scale, cap,
        D, LOW, HIGH, BLOCK, CAPPED, False, STAGES,
    )  # fmt: skip
    fade_R = peak_R * 0.0 + 1.0
    if LEARNED:
        fade_R, total_R = add_learned(
            tl.load(learned + head * G + r % G), peak_R / 1.4426950408889634, total_R
        )
    share_R = fade_R / total_R
    tl.store(
        out + at_R[:, None] + low[None, :],
        (sum_RL * share_R[:, None]).to(out.dtype.element_ty),
        mask=inside_RL,
    )
    tl.store(
        out + at_R[:, None] + high[None, :],
        (sum_RH * share_R[:, None]).to(out.dtype.element_ty),
        mask=inside_RH,
    )


def halves(head_dim: int) -> tuple[int, int]:
    """(LOW, HIGH): a head's numbers as one power of two and a smaller one, where they are that; else as one, padded."""
    low = power_of_two(head_dim // 2 + 1)
    high = head_dim - low
    if low >= 16 and high >= 16 and power_of_two(high) == high:
        return low, high
    return max(16, power_of_two(head_dim)), 16


def attend_alone(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_blocks_plain` for a prompt in one pass, which nothing comes before: torch's own attention, which neither
    caps scores nor has learned ones."""
    if how.cap is not None or how.sinks_H is not None:
        return attend_chunk(q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how)
    B, M, H, D = q_BMHD.shape
    K = k_BMKD.shape[2]
    q_BMHD = rotate_heads(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved)
    k_BMKD = rotate_heads(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved)
    _keep(k_BMKD, v_BMKD, cache, layer, start)
    q, k, v = (x.transpose(1, 2) for x in (q_BMHD, k_BMKD, v_BMKD))
    out_BHMD = functional.scaled_dot_product_attention(
        q, k, v, is_causal=M > 1, scale=how.scale, enable_gqa=H != K
    )
    return out_BHMD.transpose(1, 2).reshape(B, M, H * D)


def attend_chunk(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_blocks_plain` for a chunk of a prompt: no more memory than its own rows."""
    tile = TILE_FLOAT32 if q_BMHD.dtype == torch.float32 else TILE
    (B, M, H, D), K = q_BMHD.shape, k_BMKD.shape[2]
    q_BMHD = rotate_heads(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved)
    _keep(rotate_heads(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved), v_BMKD, cache, layer, start)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    scalars, flags = kernel_arguments(how, out)
    rows = max(tile.rows, power_of_two(H // K))
    _attend_chunk[(ceil_div(M, rows // (H // K)), B * K)](
        q_BMHD, cache.table, layer, start, out, M, *scalars,
        B, H, K, D, *halves(D), BLOCK, rows, *flags, tile.stages,
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(),
    )  # fmt: skip
    return out
