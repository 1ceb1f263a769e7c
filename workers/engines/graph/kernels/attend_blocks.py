"""Attention of M new tokens over the full cache: write their keys, then read what is filled, block by block."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import load_rotated, online_softmax, wait_for_previous
from workers.engines.graph.rope import Angles, rotate
from workers.engines.shared.rope import working
from workers.engines.sizes import BLOCK


def attend_blocks_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer.

    Blocks are merged by their log-sum-exp (FlashAttention, arXiv:2205.14135): memory is bounded by one block.
    """
    B, M, H, D = q_BMHD.shape
    K = k_BMKD.shape[2]
    first = int(start)
    q_BMHD = rotate(q_BMHD, angles.cos_MF, angles.sin_MF)
    k_BMKD = rotate(k_BMKD, angles.cos_MF, angles.sin_MF)
    _write(cache, layer, first, k_BMKD, v_BMKD)
    if first == 0:
        q, k, v = (x.transpose(1, 2) for x in (q_BMHD, k_BMKD, v_BMKD))
        out_BHMD = functional.scaled_dot_product_attention(q, k, v, is_causal=M > 1, enable_gqa=H != K)
        return out_BHMD.transpose(1, 2).reshape(B, M, H * D)
    q_BKRD = grouped(q_BMHD, K)
    position_R = (first + torch.arange(M, device=start.device)).repeat_interleave(H // K)
    peak_BKR = torch.full(q_BKRD.shape[:3], -torch.inf, dtype=q_BKRD.dtype, device=q_BKRD.device)
    total_BKR = torch.zeros_like(peak_BKR)
    sum_BKRD = torch.zeros_like(q_BKRD)
    for index, block in enumerate(cache.blocks[: ceil_div(first + M, BLOCK)]):
        k_BKCD, v_BKCD = block[layer, 0].to(q_BKRD.dtype), block[layer, 1].to(q_BKRD.dtype)
        position_C = index * BLOCK + torch.arange(BLOCK, device=start.device)
        hidden_RC = position_C[None, :] > position_R[:, None]
        scores_BKRC = (q_BKRD @ k_BKCD.transpose(2, 3) * D**-0.5).masked_fill(hidden_RC, -torch.inf)
        new_peak_BKR = torch.maximum(peak_BKR, scores_BKRC.amax(-1))  # finite: everyone sees position 0
        weights_BKRC = (scores_BKRC - new_peak_BKR[..., None]).exp()
        fade_BKR = (peak_BKR - new_peak_BKR).exp()
        total_BKR = total_BKR * fade_BKR + weights_BKRC.sum(-1)
        sum_BKRD = sum_BKRD * fade_BKR[..., None] + weights_BKRC @ v_BKCD
        peak_BKR = new_peak_BKR
    return ungrouped(sum_BKRD / total_BKR[..., None], M).to(q_BMHD.dtype)


def _write(cache: FullCache, layer: int, first: int, k_BMKD: torch.Tensor, v_BMKD: torch.Tensor) -> None:
    done, tokens = 0, k_BMKD.shape[1]
    while done < tokens:
        index, offset = divmod(first + done, BLOCK)
        count = min(BLOCK - offset, tokens - done)
        for which, x_BMKD in enumerate((k_BMKD, v_BMKD)):
            cache.blocks[index][layer, which, :, :, offset : offset + count] = x_BMKD[
                :, done : done + count
            ].transpose(1, 2)
        done += count


def grouped(q_BMHD: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, K, M * G, D] in working precision: the G query heads that share a key/value head, side by side."""
    B, M, H, D = q_BMHD.shape
    q_BMKGD = q_BMHD.reshape(B, M, kv_heads, H // kv_heads, D).to(working(q_BMHD.dtype))
    return q_BMKGD.transpose(1, 2).reshape(B, kv_heads, -1, D)


def ungrouped(attended_BKRD: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `grouped`, heads joined: [B, M, H * D]."""
    B, K, R, D = attended_BKRD.shape
    return attended_BKRD.reshape(B, K, tokens, R // tokens, D).transpose(1, 2).reshape(B, tokens, -1)


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """`blocks`: that one program reads, one after the other, `stages` of them on their way. `rows` of its query
    tile, where a row need not be computed as in a pass of one token (`query_rows`)."""

    blocks: int
    warps: int
    stages: int
    rows: int | None = None


CUT = BlockSplit(blocks=12, warps=4, stages=4)
#: Of a prompt's chunk: its queries are programs enough, so nothing is split and merged, whatever came before.
CHUNK_CUT = BlockSplit(blocks=2**16, warps=4, stages=2, rows=64)
#: Float32 is multiplied without tensor cores, in registers: as few rows as decoding takes.
CHUNK_CUT_FLOAT32 = BlockSplit(blocks=2**16, warps=4, stages=2)


@jit(do_not_specialize=["M", "layer"])
def _attend_blocks(
    q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, table, layer, start, cos, sin,
    partial, stats, M, scale,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, QUERIES: tl.constexpr,
    BLOCK: tl.constexpr, SPAN_BLOCKS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program: SPAN_BLOCKS blocks, one key/value head of one sequence, QUERIES of the M queries."""
    split, bk, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait_for_previous(PDL)
    first = tl.load(start).to(tl.int32)
    low = split * SPAN_BLOCKS * BLOCK
    if low < first + M:
        G: tl.constexpr = H // K
        b, head = bk // K, bk % K
        d = tl.arange(0, BLOCK_D)
        to_v: tl.constexpr = B * K * BLOCK * D
        here = (layer * 2).to(tl.int64) * to_v + bk * BLOCK * D

        # The blocks of a split belong to it alone, so it writes the new keys that fall there before it reads.
        if low + SPAN_BLOCKS * BLOCK > first:
            for j0 in range(0, M, 16):
                j = j0 + tl.arange(0, 16)
                position = first + j
                mine = (j < M) & (position >= low) & (position < low + SPAN_BLOCKS * BLOCK)
                row = (b * M + j).to(tl.int64)  # a batch of long chunks passes 2^31 numbers
                k_JD = load_rotated(k, row * k_row + head * k_head, mine, cos, sin, j, D, F, BLOCK_D)
                inside = mine[:, None] & (d < D)[None, :]
                v_JD = tl.load(
                    v + (row * v_row + head * v_head)[:, None] + d[None, :], mask=inside, other=0.0
                )
                address = tl.load(table + position // BLOCK, mask=mine, other=0)
                block_J = address.to(tl.pointer_type(q.dtype.element_ty))
                place = block_J[:, None] + here + (position % BLOCK)[:, None] * D + d[None, :]
                tl.store(place, k_JD, mask=inside)
                tl.store(place + to_v, v_JD, mask=inside)
            tl.debug_barrier()

        r = tl.arange(0, BLOCK_R)
        m = group * QUERIES + r // G
        asks = (r < QUERIES * G) & (m < M)
        q_R = (b * M + m).to(tl.int64) * q_row + (head * G + r % G) * q_head
        q_RD = load_rotated(q, q_R, asks, cos, sin, m, D, F, BLOCK_D)
        peak_R = tl.full((BLOCK_R,), float("-inf"), tl.float32)
        total_R = tl.zeros((BLOCK_R,), tl.float32)
        sum_RD = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
        c = tl.arange(0, BLOCK)
        end = tl.minimum(tl.cdiv(first + M, BLOCK), (split + 1) * SPAN_BLOCKS)
        for index in range(split * SPAN_BLOCKS, end):
            position = index * BLOCK + c
            block = tl.load(table + index).to(tl.pointer_type(q.dtype.element_ty))
            place = tl.multiple_of(block, 16) + here + c[:, None] * D + d[None, :]
            inside = (position < first + M)[:, None] & (d < D)[None, :]
            k_CD = tl.load(place, mask=inside, other=0.0)
            v_CD = tl.load(place + to_v, mask=inside, other=0.0)
            scores_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision="ieee")
            visible = position[None, :] <= (first + m)[:, None]
            scores_RC = tl.where(visible, scores_RC * scale, float("-inf"))
            peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
        N = B * M * H
        at_R = (b * M + m).to(tl.int64) * H + head * G + r % G
        tl.store(stats + split * 2 * N + at_R, peak_R, mask=asks)
        tl.store(stats + (split * 2 + 1) * N + at_R, total_R, mask=asks)
        tl.store(
            partial + (split * N + at_R)[:, None] * D + d[None, :],
            sum_RD,
            mask=asks[:, None] & (d < D)[None, :],
        )


@jit(do_not_specialize=["M", "N"])
def _merge(
    partial, stats, start, out, M, N,
    D: tl.constexpr, SPAN: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row, its splits in their order. Splits a row does not see weigh nothing."""
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    splits = tl.cdiv(tl.load(start).to(tl.int32) + M, SPAN)
    peak = tl.max(tl.full((BLOCK_S,), float("-inf"), tl.float32), axis=0)
    total = 0.0
    sum_D = tl.zeros((BLOCK_D,), tl.float32)
    for s0 in range(0, splits, BLOCK_S):
        s = s0 + tl.arange(0, BLOCK_S)
        peak_S = tl.load(stats + s * 2 * N + row, mask=s < splits, other=float("-inf"))
        total_S = tl.load(stats + (s * 2 + 1) * N + row, mask=s < splits, other=0.0)
        inside = (s < splits)[:, None] & (d < D)[None, :]
        part_SD = tl.load(partial + (s * N + row)[:, None] * D + d[None, :], mask=inside, other=0.0)
        new_peak = tl.maximum(peak, tl.max(peak_S, axis=0))
        weight_S = tl.exp(peak_S - new_peak)
        fade = tl.exp(peak - new_peak)
        total = total * fade + tl.sum(weight_S * total_S, axis=0)
        sum_D = sum_D * fade + tl.sum(weight_S[:, None] * part_SD, axis=0)
        peak = new_peak
    tl.store(out + row * D + d, (sum_D / total).to(out.dtype.element_ty), mask=d < D)


def attend_blocks(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    cut: BlockSplit = CUT,
) -> torch.Tensor:
    """`attend_blocks_plain` in two launches: the splits, their merge."""
    B, M, H, D = q_BMHD.shape
    K, F, N = k_BMKD.shape[2], angles.cos_MF.shape[1], B * M * H
    rows = cut.rows or query_rows(H // K)
    queries = rows // (H // K)
    splits = ceil_div(cache.grid_tokens, cut.blocks * BLOCK)
    partial = torch.empty(splits, N, D, dtype=torch.float32, device=q_BMHD.device)
    stats = torch.empty(splits, 2, N, dtype=torch.float32, device=q_BMHD.device)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    block_d = max(16, power_of_two(D))
    _attend_blocks[(splits, B * K, ceil_div(M, queries))](
        q_BMHD, k_BMKD, v_BMKD, *strides(q_BMHD), *strides(k_BMKD), *strides(v_BMKD),
        cache.table, layer, start, angles.cos_MF, angles.sin_MF, partial, stats, M, D**-0.5,
        B, H, K, D, F, queries, BLOCK, cut.blocks, rows, block_d, num_warps=cut.warps, num_stages=cut.stages, **launch_options(),
    )  # fmt: skip
    _merge[(N,)](
        partial, stats, start, out, M, N, D, cut.blocks * BLOCK, 16, block_d, num_warps=4, **launch_options()
    )
    return out


def attend_chunk(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
) -> torch.Tensor:
    """`attend_blocks_plain` for the many tokens of a prompt's chunk: no more memory than its own rows."""
    cut = CHUNK_CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CHUNK_CUT
    return attend_blocks(q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, cut)


def query_rows(group: int) -> int:
    """Rows of a program's query tile: eight queries for each head of the group, whatever a pass holds, so that
    a row is computed alike in a pass of one token and of many."""
    return min(64, max(16, power_of_two(8 * group)))


def strides(x_BMHD: torch.Tensor) -> tuple[int, int]:
    """Of a row (a token of a sequence) and of a head; the numbers of a head are adjacent."""
    return x_BMHD.stride(1), x_BMHD.stride(2)
