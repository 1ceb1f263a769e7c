"""Attention of M new tokens over the full cache: write their keys, then read what is filled, block by block."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.jit import (
    ceil_div,
    jit,
    launch_options,
    multiprocessors,
    power_of_two,
    tl,
)
from workers.engines.graph.kernels.scores import (
    attended,
    kernel_arguments,
    scored_tile,
)
from workers.engines.graph.kernels.tiles import (
    empty_softmax,
    load_rotated,
    online_softmax,
    wait_for_previous,
)
from workers.engines.graph.kernels.units import first_block, merge_row, share_of, store_unit, units_seen
from workers.engines.graph.rope import Angles, rotate
from workers.engines.graph.weights import Attention
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
    how: Attention,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer. Memory is bounded by one block."""
    B, M, H, D = q_BMHD.shape
    K = k_BMKD.shape[2]
    first = int(start)
    q_BMHD = rotate(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved)
    k_BMKD = rotate(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved)
    write_blocks(cache, layer, first, k_BMKD, v_BMKD)
    if first == 0 and how.cap is None and how.sinks_H is None:
        q, k, v = (x.transpose(1, 2) for x in (q_BMHD, k_BMKD, v_BMKD))
        out_BHMD = functional.scaled_dot_product_attention(
            q, k, v, is_causal=M > 1, scale=how.scale, enable_gqa=H != K
        )
        return out_BHMD.transpose(1, 2).reshape(B, M, H * D)
    q_BKRD = grouped(q_BMHD, K)
    position_R = (first + torch.arange(M, device=start.device)).repeat_interleave(H // K)
    within_C = torch.arange(BLOCK, device=start.device)
    tiles = (
        (
            q_BKRD @ block[layer, 0].to(q_BKRD.dtype).transpose(2, 3),
            block[layer, 1],
            index * BLOCK + within_C <= position_R[:, None],
        )
        for index, block in enumerate(cache.blocks[: ceil_div(first + M, BLOCK)])
    )
    return ungrouped(attended(q_BKRD, tiles, how, M), M).to(q_BMHD.dtype)


def write_blocks(cache: FullCache, layer: int, first: int, *kept: torch.Tensor) -> None:
    """Write positions from `first` on of one layer. `kept`: keys and values [B, M, K, D], or latents alone."""
    done, tokens = 0, kept[0].shape[1]
    while done < tokens:
        index, offset = divmod(first + done, BLOCK)
        count = min(BLOCK - offset, tokens - done)
        for which, x_BMKD in enumerate(kept):
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


#: Units of equal length in a row; the next as many are twice as long.
OCTAVE = 16
#: Octaves of units that a row can have: 33 million tokens.
OCTAVES = 16


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """Of a program: `warps`, `stages` of its loads. `at_once`: as many run together on a multiprocessor."""

    warps: int
    stages: int
    at_once: int

    @property
    def registers(self) -> int:
        """Of a thread, so that `at_once` programs have room (65,536 registers; multiples of 8)."""
        return 65536 // (self.at_once * self.warps * 32) // 8 * 8


CUT = BlockSplit(warps=4, stages=3, at_once=2)
#: Of a row that are merged at once.
UNITS = 32


def units_of(blocks: int) -> int:
    """Units of a row that sees `blocks`. The first 32 are one block long, the next 16 two, the next 16 four, and so on.

    A unit is summed alone, whoever reads it, and units are merged in their order. So a row is summed alike whatever the
    rows of a pass and the number of programs; short contexts have units enough for many programs, long ones no more than
    can be merged.
    """
    if blocks <= OCTAVE:
        return blocks
    octave = ((blocks - 1) // OCTAVE).bit_length() - 1
    return octave * OCTAVE + ((blocks - 1) >> octave) + 1


def programs_of(heads: int, at_once: int) -> int:
    """Programs that share the blocks of one head of one sequence: as many as run at once, or several times that."""
    return at_once // heads if heads <= at_once else ceil_div(4 * at_once, heads)


@jit
def _write_new_keys(
    k, v, k_row, k_head, v_row, v_head, table, here, to_v, cos, sin, first, M, b, begin, end,
    D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Those of the M new keys and values that fall into blocks `begin .. end`, `here` in each, of one key/value head of
    sequence `b`, which begins at `k_head` and `v_head` of a row."""
    d = tl.arange(0, BLOCK_D)
    for j0 in tl.range(0, M, 16, num_stages=1):
        j = j0 + tl.arange(0, 16)
        position = first + j
        mine = (j < M) & (position >= begin * BLOCK) & (position < end * BLOCK)
        row = (b * M + j).to(tl.int64)  # a batch of long chunks passes 2^31 numbers
        k_JD = load_rotated(k, row * k_row + k_head, mine, cos, sin, j, D, F, INTERLEAVED, BLOCK_D)
        inside = mine[:, None] & (d < D)[None, :]
        v_JD = tl.load(v + (row * v_row + v_head)[:, None] + d[None, :], mask=inside, other=0.0)
        block_J = tl.load(table + position // BLOCK, mask=mine, other=0).to(
            tl.pointer_type(k.dtype.element_ty)
        )
        place = block_J[:, None] + here + (position % BLOCK)[:, None] * D + d[None, :]
        tl.store(place, k_JD, mask=inside)
        tl.store(place + to_v, v_JD, mask=inside)
    tl.debug_barrier()


@jit(do_not_specialize=["M", "layer"])
def _attend_blocks(
    q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, table, layer, start, cos, sin, partial, stats, M, scale, cap,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, QUERIES: tl.constexpr,
    BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: its share of the blocks, one key/value head of one sequence, QUERIES of the M queries."""
    bk, group = tl.program_id(1), tl.program_id(2)
    first = tl.load(start).to(tl.int32)
    blocks = tl.cdiv(first + M, BLOCK)
    unit, begin, end = share_of(tl.program_id(0), tl.num_programs(0), blocks, OCTAVE, OCTAVES, False)
    wait_for_previous(PDL)
    if begin < end:
        G: tl.constexpr = H // K
        b, head = bk // K, bk % K
        d = tl.arange(0, BLOCK_D)
        c = tl.arange(0, BLOCK)
        to_v: tl.constexpr = B * K * BLOCK * D
        here = (layer * 2).to(tl.int64) * to_v + bk * BLOCK * D
        r = tl.arange(0, BLOCK_R)
        m = group * QUERIES + r // G
        asks = (r < QUERIES * G) & (m < M)
        q_R = (b * M + m).to(tl.int64) * q_row + (head * G + r % G) * q_head
        q_RD = load_rotated(q, q_R, asks, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)

        # The blocks of a program belong to it alone, so it writes the new keys that fall there before it reads.
        # Several groups of queries write the same bytes.
        if end * BLOCK > first:
            _write_new_keys(
                k, v, k_row, head * k_head, v_row, head * v_head, table, here, to_v, cos, sin, first, M, b, begin, end,
                D, F, INTERLEAVED, BLOCK, BLOCK_D,
            )  # fmt: skip

        at_R = (b * M + m).to(tl.int64) * H + head * G + r % G
        peak_R, total_R, sum_RD = empty_softmax(BLOCK_R, BLOCK_D)
        address = tl.load(table + begin)  # read one ahead, so that the loads of a block wait for nothing
        for index in range(begin, end):
            position = index * BLOCK + c
            block = address.to(tl.pointer_type(q.dtype.element_ty))
            address = tl.load(table + index + 1)
            place = tl.multiple_of(block, 16) + here + c[:, None] * D + d[None, :]
            inside = (position < first + M)[:, None] & (d < D)[None, :]
            k_CD = tl.load(place, mask=inside, other=0.0)
            v_CD = tl.load(place + to_v, mask=inside, other=0.0)
            scores_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision="ieee")
            visible = position[None, :] <= (first + m)[:, None]
            scores_RC = tl.where(visible, scored_tile(scores_RC, scale, cap, CAPPED), float("-inf"))
            peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
            if (index + 1 == end) | (index + 1 == first_block(unit + 1, OCTAVE)):
                store_unit(partial, stats, unit, at_R, asks, B * M * H, peak_R, total_R, sum_RD, D, BLOCK_D)
                peak_R, total_R, sum_RD = empty_softmax(BLOCK_R, BLOCK_D)
                unit += 1


@jit(do_not_specialize=["M", "N"])
def _merge(
    partial, stats, start, out, learned, M, N,
    H: tl.constexpr, LEARNED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    units = units_seen(tl.load(start).to(tl.int32), M, BLOCK, OCTAVE, OCTAVES)
    wait_for_previous(PDL)
    merge_row(partial, stats, out, learned, row, units, N, H, LEARNED, D, BLOCK_S, BLOCK_D)


def attend_blocks(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
    cut: BlockSplit = CUT,
) -> torch.Tensor:
    """`attend_blocks_plain` in two launches, the same at every length: the units, their merge."""
    B, M, H, D = q_BMHD.shape
    K, F, N = k_BMKD.shape[2], angles.cos_MF.shape[1], B * M * H
    rows = query_rows(H // K)
    queries = rows // (H // K)
    programs = programs_of(B * K, cut.at_once * multiprocessors(q_BMHD.device))
    units = units_of(ceil_div(cache.most_tokens, BLOCK))
    partial = torch.empty(units, N, D, dtype=torch.float32, device=q_BMHD.device)
    stats = torch.empty(units, 2, N, dtype=torch.float32, device=q_BMHD.device)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    block_d = max(16, power_of_two(D))
    (scale, cap, learned), (capped, is_learned) = kernel_arguments(how, out)
    _attend_blocks[(programs, B * K, ceil_div(M, queries))](
        q_BMHD, k_BMKD, v_BMKD, *strides(q_BMHD), *strides(k_BMKD), *strides(v_BMKD),
        cache.table, layer, start, angles.cos_MF, angles.sin_MF, partial, stats, M, scale, cap,
        B, H, K, D, F, how.interleaved, queries, BLOCK, OCTAVE, OCTAVES, rows, block_d, capped,
        num_warps=cut.warps, num_stages=cut.stages, maxnreg=cut.registers, **launch_options(),
    )  # fmt: skip
    _merge[(N,)](
        partial, stats, start, out, learned, M, N, H, is_learned, D, BLOCK, OCTAVE, OCTAVES, UNITS, block_d, num_warps=4,
        **launch_options(),
    )  # fmt: skip
    return out


def query_rows(group: int) -> int:
    """Rows of a program's query tile: eight queries for each head of the group, whatever a pass holds, so that
    a row is computed alike in a pass of one token and of many."""
    return min(64, max(16, power_of_two(8 * group)))


def strides(x_BMHD: torch.Tensor) -> tuple[int, int]:
    """Of a row (a token of a sequence) and of a head; the numbers of a head are adjacent."""
    return x_BMHD.stride(1), x_BMHD.stride(2)
