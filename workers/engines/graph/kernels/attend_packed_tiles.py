"""`attend_packed_plain` in Triton: one launch keeps and packs, one reads, one merges.

Codes are multiplied as they are: of keys, the query is scaled by channel before the product; of values, the weights by token.
"""

import torch

from workers.engines.graph.kernels.attend_blocks import (
    OCTAVE,
    OCTAVES,
    BlockSplit,
    programs_of,
    query_rows,
    strides,
    units_of,
)
from workers.engines.graph.kernels.attend_packed import in_pieces
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, multiprocessors, power_of_two, tl
from workers.engines.graph.kernels.pack_tiles import keep
from workers.engines.graph.kernels.scores import kernel_arguments, scored_tile
from workers.engines.graph.kernels.tiles import (
    empty_softmax,
    load_rotated,
    online_softmax,
    softmax_step,
    wait_for_previous,
)
from workers.engines.graph.kernels.units import (
    add_units,
    first_block,
    first_unit_from,
    store_row,
    store_unit,
    unit_of,
)
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention
from workers.engines.sizes import BLOCK, RECENT_BLOCKS

#: How programs share the packed blocks.
CUT = BlockSplit(warps=4, stages=3, at_once=2)


@jit
def _scaled_softmax(scores_RC, code_CD, scale_C, zero_C, peak_R, total_R, sum_RD, ZEROS: tl.constexpr):
    """`tiles.online_softmax` of values code * scale + zero."""
    peak_R, total_R, fade_R, weight_RC = softmax_step(scores_RC, peak_R, total_R)
    scaled_RC = (weight_RC * scale_C[None, :]).to(code_CD.dtype)
    sum_RD = tl.dot(scaled_RC, code_CD, sum_RD * fade_R[:, None], input_precision="ieee")
    if ZEROS:
        sum_RD += tl.sum(weight_RC * zero_C[None, :], axis=1)[:, None]
    return peak_R, total_R, sum_RD


@jit
def _read_packed(
    address, q_RD, scaled_RD, shift_R, seen_R, query_R, position0, scale, cap, peak_R, total_R, sum_RD,
    HALVES: tl.constexpr, D: tl.constexpr, S: tl.constexpr, WINDOW: tl.constexpr,
    V_CODES: tl.constexpr, V_SCALES: tl.constexpr, V_ZEROS: tl.constexpr, CODE: tl.constexpr, ZEROS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One packed block. `scaled_RD`, `shift_R`: the queries by the scales of its channels, and with their zeros."""
    TOKENS: tl.constexpr = BLOCK // HALVES
    kind = tl.pointer_type(q_RD.dtype)
    c, d = tl.arange(0, TOKENS), tl.arange(0, BLOCK_D)
    inside_D = (d < D)[None, :]
    # Of the pointers, not of the addresses: only so are 16 codes read at once.
    k_codes = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 16)
    v_codes = tl.multiple_of((address + V_CODES).to(tl.pointer_type(tl.uint8)), 16)
    k_raw = tl.load(k_codes + c[:, None] * D + d[None, :], mask=inside_D, other=0)
    v_raw = tl.load(v_codes + d[:, None] * TOKENS + c[None, :], mask=(d < D)[:, None], other=0)
    for half in tl.static_range(HALVES):
        if HALVES == 2:
            k_code_CD, v_code_DC = (k_raw >> (4 * half)) & 15, (v_raw >> (4 * half)) & 15
        else:
            k_code_CD, v_code_DC = k_raw, v_raw
        k_CD = k_code_CD.to(CODE, bitcast=True).to(tl.float32).to(q_RD.dtype)
        v_CD = tl.trans(v_code_DC.to(CODE, bitcast=True).to(tl.float32).to(q_RD.dtype))
        scales = (address + V_SCALES).to(kind) + half * TOKENS + c
        scale_C = tl.load(scales).to(tl.float32)
        zero_C = scale_C
        if ZEROS:
            zero_C = tl.load((address + V_ZEROS).to(kind) + half * TOKENS + c).to(tl.float32)
        products_RC = tl.dot(scaled_RD, tl.trans(k_CD), input_precision="ieee")
        if ZEROS:
            products_RC += shift_R[:, None]
        position = position0 + half * TOKENS + c
        age_RC = query_R[:, None] - position[None, :]
        seen_RC = seen_R[:, None] & (age_RC < WINDOW) & (position >= S)[None, :]
        scores_RC = tl.where(seen_RC, scored_tile(products_RC, scale, cap, CAPPED), float("-inf"))
        peak_R, total_R, sum_RD = _scaled_softmax(
            scores_RC, v_CD, scale_C, zero_C, peak_R, total_R, sum_RD, ZEROS
        )
    return peak_R, total_R, sum_RD


@jit
def _read_newest(
    q, q_R, near_RD, asks, m, query_R, recent, sinks, bk, first, last, M, far_cos, far_sin, scale, cap, peak_R, total_R, sum_RD,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, S: tl.constexpr, WINDOW: tl.constexpr,
    RECENT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Newest tokens, and sinks, as the model computed them."""
    d = tl.arange(0, BLOCK_D)
    c = tl.arange(0, BLOCK)
    of_k = recent + bk.to(tl.int64) * RECENT * BLOCK * D
    # In one stage: these few blocks are not to take the shared memory that packed ones need.
    for index in tl.range(tl.maximum(first // BLOCK - (RECENT - 2), 0), last + 1, num_stages=1):
        position = index * BLOCK + c
        place = of_k + ((index % RECENT) * BLOCK + c)[:, None] * D + d[None, :]
        inside = (position < first + M)[:, None] & (d < D)[None, :]
        k_CD = tl.load(place, mask=inside, other=0.0)
        v_CD = tl.load(place + B * K * RECENT * BLOCK * D, mask=inside, other=0.0)
        products_RC = tl.dot(near_RD, tl.trans(k_CD), input_precision="ieee")
        age_RC = query_R[:, None] - position[None, :]
        seen_RC = (index >= query_R // BLOCK - (RECENT - 2))[:, None] & (age_RC >= 0)
        seen_RC = seen_RC & (age_RC < WINDOW) & (position >= S)[None, :]
        scores_RC = tl.where(seen_RC, scored_tile(products_RC, scale, cap, CAPPED), float("-inf"))
        peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
    if S > 0:
        far_RD = load_rotated(q, q_R, asks, far_cos, far_sin, m, D, F, INTERLEAVED, BLOCK_D)
        for s0 in range(0, S, 16):
            sink = s0 + tl.arange(0, 16)
            place = sinks + (bk.to(tl.int64) * S + sink)[:, None] * D + d[None, :]
            inside = (sink < S)[:, None] & (d < D)[None, :]
            k_CD = tl.load(place, mask=inside, other=0.0)
            v_CD = tl.load(place + B * K * S * D, mask=inside, other=0.0)
            products_RC = tl.dot(far_RD, tl.trans(k_CD), input_precision="ieee")
            seen_RC = (sink < S)[None, :] & (sink[None, :] <= query_R[:, None])
            scores_RC = tl.where(seen_RC, scored_tile(products_RC, scale, cap, CAPPED), float("-inf"))
            peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
    return peak_R, total_R, sum_RD


@jit
def _share(
    first, last, sharing, RING: tl.constexpr, WINDOW: tl.constexpr, RECENT: tl.constexpr, BLOCK: tl.constexpr,
    OCTAVE: tl.constexpr, OCTAVES: tl.constexpr,
):  # fmt: skip
    """The first unit of this program, and its packed blocks `begin .. end`. In a ring a block is a unit."""
    program = tl.program_id(0)
    blocks = tl.maximum(last - (RECENT - 2), 0)
    if RING:
        oldest = tl.maximum(first - WINDOW + 1, 0) // BLOCK
        share = tl.cdiv(tl.maximum(blocks - oldest, 0), sharing)
        unit = oldest + program * share
        begin, end = unit, tl.minimum(unit + share, blocks)
    else:
        share = tl.cdiv(blocks, sharing)
        unit = first_unit_from(program * share, OCTAVE, OCTAVES)
        begin = first_block(unit, OCTAVE)
        end = tl.minimum(first_block(first_unit_from((program + 1) * share, OCTAVE, OCTAVES), OCTAVE), blocks)
    return unit, begin, end


@jit
def _scaled_queries(
    near_RD, total_R, address, K_SCALES: tl.constexpr, K_ZEROS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """The queries by the scales of a block's channels, and with their zeros."""
    d = tl.arange(0, BLOCK_D)
    kind = tl.pointer_type(near_RD.dtype)
    scale_D = tl.load(tl.multiple_of((address + K_SCALES).to(kind), 16) + d, mask=d < D, other=0.0).to(
        tl.float32
    )
    scaled_RD = (near_RD.to(tl.float32) * scale_D[None, :]).to(near_RD.dtype)
    shift_R = tl.zeros_like(total_R)
    if ZEROS:
        zero_D = tl.load((address + K_ZEROS).to(kind) + d, mask=d < D, other=0.0).to(tl.float32)
        shift_R = tl.sum(near_RD.to(tl.float32) * zero_D[None, :], axis=1)
    return scaled_RD, shift_R


@jit(do_not_specialize=["M", "layer", "places", "last_unit"])
def _attend_packed(
    q, q_row, q_head, recent, sinks, table, layer, start, cos, sin, far_cos, far_sin, partial, stats, M, places, last_unit,
    scale, cap,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, S: tl.constexpr,
    WINDOW: tl.constexpr, RING: tl.constexpr, QUERIES: tl.constexpr,
    SIZE: tl.constexpr, V_CODES: tl.constexpr, K_SCALES: tl.constexpr, K_ZEROS: tl.constexpr,
    V_SCALES: tl.constexpr, V_ZEROS: tl.constexpr, CODE: tl.constexpr, ZEROS: tl.constexpr, HALVES: tl.constexpr,
    RECENT: tl.constexpr, BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: its share of the packed blocks, or, the last one, newest tokens and sinks; one key/value head of one
    sequence; QUERIES of the M queries."""
    wait_for_previous(PDL)
    program, bk, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    G: tl.constexpr = H // K
    b, head = bk // K, bk % K
    first = tl.load(start).to(tl.int32)
    last = (first + M - 1) // BLOCK
    r = tl.arange(0, BLOCK_R)
    m = group * QUERIES + r // G
    asks = (r < QUERIES * G) & (m < M)
    query_R = first + m
    q_R = (b * M + m).to(tl.int64) * q_row + (head * G + r % G) * q_head
    at_R = (b * M + m).to(tl.int64) * H + head * G + r % G
    near_RD = load_rotated(q, q_R, asks, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)
    peak_R, total_R, sum_RD = empty_softmax(BLOCK_R, BLOCK_D)
    sharing = tl.num_programs(0) - 1
    if program < sharing:
        unit, begin, end = _share(first, last, sharing, RING, WINDOW, RECENT, BLOCK, OCTAVE, OCTAVES)
        here = (layer.to(tl.int64) * B * K + bk) * SIZE
        follows = tl.load(
            table + begin % places
        )  # read one ahead, so that the loads of a block wait for nothing
        for index in range(begin, end):
            address = follows + here
            follows = tl.load(table + (index + 1) % places)
            scaled_RD, shift_R = _scaled_queries(
                near_RD, total_R, address, K_SCALES, K_ZEROS, D, BLOCK_D, ZEROS
            )
            peak_R, total_R, sum_RD = _read_packed(
                address, near_RD, scaled_RD, shift_R, index < query_R // BLOCK - (RECENT - 2), query_R, index * BLOCK,
                scale, cap, peak_R, total_R, sum_RD,
                HALVES, D, S, WINDOW, V_CODES, V_SCALES, V_ZEROS, CODE, ZEROS, BLOCK, BLOCK_D, CAPPED,
            )  # fmt: skip
            if RING:
                is_last = index >= 0
                into = index % places
            else:
                is_last = (index + 1 == end) | (index + 1 == first_block(unit + 1, OCTAVE))
                into = unit
            if is_last:
                store_unit(partial, stats, into, at_R, asks, B * M * H, peak_R, total_R, sum_RD, D, BLOCK_D)
                peak_R, total_R, sum_RD = empty_softmax(BLOCK_R, BLOCK_D)
                unit += 1
    else:
        peak_R, total_R, sum_RD = _read_newest(
            q, q_R, near_RD, asks, m, query_R, recent, sinks, bk, first, last, M, far_cos, far_sin, scale, cap,
            peak_R, total_R, sum_RD, B, K, D, F, INTERLEAVED, S, WINDOW, RECENT, BLOCK, BLOCK_D, CAPPED,
        )  # fmt: skip
        store_unit(partial, stats, last_unit, at_R, asks, B * M * H, peak_R, total_R, sum_RD, D, BLOCK_D)


@jit(do_not_specialize=["M", "N", "places", "last_unit"])
def _merge_packed(
    partial, stats, start, out, learned, M, N, places, last_unit,
    H: tl.constexpr, LEARNED: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, RING: tl.constexpr,
    RECENT: tl.constexpr, BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row; newest tokens and sinks, then the units of packed blocks in their order."""
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    first = tl.load(start).to(tl.int32)
    blocks = tl.maximum((first + M - 1) // BLOCK - (RECENT - 2), 0)
    oldest = tl.maximum(first - WINDOW + 1, 0) // BLOCK
    units = places
    if not RING:
        units = tl.where(blocks > 0, unit_of(tl.maximum(blocks - 1, 0), OCTAVE, OCTAVES) + 1, 0)
    peak = tl.load(stats + last_unit.to(tl.int64) * 2 * N + row)
    total = tl.load(stats + (last_unit.to(tl.int64) * 2 + 1) * N + row)
    sum_D = tl.load(partial + (last_unit.to(tl.int64) * N + row) * D + d, mask=d < D, other=0.0)
    for s0 in tl.range(0, units, BLOCK_S, num_stages=1):
        s = s0 + tl.arange(0, BLOCK_S)
        there = s < units
        if RING:
            behind = (s - oldest % places + places) % places
            there = there & (behind < blocks - oldest)
        peak, total, sum_D = add_units(partial, stats, s, there, row, N, peak, total, sum_D, D, BLOCK_D)
    store_row(out, learned, row, peak, total, sum_D, H, LEARNED, D, BLOCK_D)


def _attend(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: PackedCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    B, M, H, D = q_BMHD.shape
    K, F, N, S = k_BMKD.shape[2], angles.cos_MF.shape[1], B * M * H, cache.sinks.shape[4]
    stored, group, ring = cache.stored, cache.group, not cache.grows
    is_fp8, block_d = stored.name == "fp8", max(16, power_of_two(D))
    code = (
        tl.float8e4nv if is_fp8 else tl.int8
    )  # of four bits, too: signed bytes become numbers in fewer instructions
    rows = query_rows(H // K)
    queries = rows // (H // K)
    units = cache.places if ring else units_of(cache.places)
    assert CUT.at_once is not None
    programs = min(programs_of(B * K, CUT.at_once * multiprocessors(q_BMHD.device)), units)
    partial = torch.empty(units + 1, N, D, dtype=torch.float32, device=q_BMHD.device)
    stats = torch.empty(units + 1, 2, N, dtype=torch.float32, device=q_BMHD.device)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    scalars, (capped, learns) = kernel_arguments(how, out)
    recent, sinks = cache.recent[layer], cache.sinks[layer]
    where = (group.v_codes, group.k_scales, group.k_zeros, group.v_scales, group.v_zeros)
    keep[(B * K,)](
        k_BMKD, v_BMKD, *strides(k_BMKD), *strides(v_BMKD), recent, sinks, cache.table, layer, start,
        angles.cos_MF, angles.sin_MF, M, cache.places, B, K, D, F, how.interleaved, S, group.size, *where, code, stored.largest,
        stored.has_zeros, is_fp8, stored.bits, RECENT_BLOCKS, BLOCK, block_d, num_warps=4, **launch_options(),
    )  # fmt: skip
    _attend_packed[(programs + 1, B * K, ceil_div(M, queries))](
        q_BMHD, *strides(q_BMHD), recent, sinks, cache.table, layer, start, angles.cos_MF, angles.sin_MF,
        angles.far_cos_MF, angles.far_sin_MF, partial, stats, M, cache.places, units, *scalars[:2],
        B, H, K, D, F, how.interleaved, S, cache.sliding_window, ring, queries, group.size, *where, code, stored.has_zeros,
        8 // stored.bits, RECENT_BLOCKS, BLOCK, OCTAVE, OCTAVES, rows, block_d, capped,
        num_warps=CUT.warps, num_stages=CUT.stages, maxnreg=CUT.registers, **launch_options(),
    )  # fmt: skip
    _merge_packed[(N,)](
        partial, stats, start, out, scalars[2], M, N, cache.places, units, H, learns, D, cache.sliding_window, ring,
        RECENT_BLOCKS, BLOCK, OCTAVE, OCTAVES, 32, block_d, num_warps=4, **launch_options(),
    )  # fmt: skip
    return out


#: In three launches, the same at every length.
attend_packed = in_pieces(_attend)
