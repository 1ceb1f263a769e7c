"""Attention of M new tokens over sinks and ring: write their keys, then score the window with the query at its
absolute position and the sinks with the query at min(t, S + R - 1)."""

import torch

from workers.engines.graph.kernels.attend_blocks import grouped, query_rows, strides, ungrouped
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, multiprocessors, power_of_two, tl
from workers.engines.graph.kernels.scores import (
    add_learned,
    kernel_arguments,
    learned_rows,
    scored,
    scored_tile,
    weighted,
)
from workers.engines.graph.kernels.tiles import empty_softmax, load_rotated, wait_for_previous
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import Angles, rotate
from workers.engines.graph.weights import Attention
from workers.engines.shared.rope import working


def attend_ring_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer."""
    ring, k_BKCD, v_BKCD = cache.ring, cache.k_LBKCD[layer], cache.v_LBKCD[layer]
    M, H = q_BMHD.shape[1:3]
    position_M = start + torch.arange(M, device=start.device)
    slot_M = ring.slot(position_M)
    k_BKCD.index_copy_(
        2, slot_M, rotate(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved).transpose(1, 2)
    )
    v_BKCD.index_copy_(2, slot_M, v_BMKD.transpose(1, 2))

    visible_MC = ring.visible(position_M, start + M)
    is_sink_C = torch.arange(k_BKCD.shape[2], device=start.device) < ring.sinks

    K = k_BKCD.shape[1]
    k = k_BKCD.to(working(q_BMHD.dtype)).transpose(2, 3)
    near = grouped(rotate(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved), K) @ k
    far = grouped(rotate(q_BMHD, angles.far_cos_MF, angles.far_sin_MF, how.interleaved), K) @ k
    scores_BKRC = scored(torch.where(is_sink_C, far, near), how)
    visible_RC = visible_MC.repeat_interleave(H // K, dim=0)
    hidden_BKRC = scores_BKRC.masked_fill(~visible_RC, -torch.inf)
    weights_BKRC = weighted(hidden_BKRC, learned_rows(how, K, M, hidden_BKRC))
    attended_BKRD = weights_BKRC @ v_BKCD.to(weights_BKRC.dtype)
    return ungrouped(attended_BKRD, M).to(q_BMHD.dtype)


#: Slots that one program reads, in one product. More programs hide more of each other's waiting.
SPAN = 64
#: Of a thread: three programs of 128 threads fit a multiprocessor. Where fewer programs are launched, none must wait.
REGISTERS = 168


@jit
def _merge_one(
    stats_R, partial_RD, N, there_R, inside_RD, peak_R, total_R, sum_RD
):  # fmt: skip
    """What has been merged so far, and one more. What a row does not see weighs nothing, and changes no bit."""
    theirs_R = tl.load(stats_R, mask=there_R, other=float("-inf"), cache_modifier=".cg")
    count_R = tl.load(stats_R + N, mask=there_R, other=0.0, cache_modifier=".cg")
    part_RD = tl.load(partial_RD, mask=inside_RD, other=0.0, cache_modifier=".cg")
    new_peak_R = tl.maximum(peak_R, theirs_R)
    level_R = tl.where(new_peak_R == float("-inf"), 0.0, new_peak_R)
    fade_R, weight_R = tl.exp(peak_R - level_R), tl.exp(theirs_R - level_R)
    return (
        new_peak_R,
        total_R * fade_R + weight_R * count_R,
        sum_RD * fade_R[:, None] + weight_R[:, None] * part_RD,
    )


@jit
def _write_new_keys(
    k, v, k_row, k_head, v_row, v_head, k_cache, v_cache, cos, sin, first, M, b, bk, low,
    D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SPAN: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Those of the M new keys and values that fall into the SPAN slots from `low` on, of one key/value head of sequence
    `b`, which begins at `k_head` and `v_head` of a row."""
    d = tl.arange(0, BLOCK_D)
    for j0 in range(0, M, 16):
        j = j0 + tl.arange(0, 16)
        turned = (first + j - S) % P
        new = tl.where(first + j < S, first + j, S + tl.where(turned < 0, turned + P, turned))
        mine = (j < M) & (new >= low) & (new < low + SPAN)
        row = b * M + j
        k_JD = load_rotated(k, row * k_row + k_head, mine, cos, sin, j, D, F, INTERLEAVED, BLOCK_D)
        written = mine[:, None] & (d < D)[None, :]
        v_JD = tl.load(v + (row * v_row + v_head)[:, None] + d[None, :], mask=written, other=0.0)
        new_place = (bk * (S + P) + new)[:, None] * D + d[None, :]
        tl.store(k_cache + new_place, k_JD, mask=written)
        tl.store(v_cache + new_place, v_JD, mask=written)
    tl.debug_barrier()


@jit
def _visible(
    slot, m, first, last, last_place, M, S: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr
):  # fmt: skip
    """[R, C] bool: which slots the queries see. Slot S + j holds position S + last - ((last - j) mod P):
    `RingSlots.held`."""
    sees_sinks = tl.minimum(first + m, S)
    behind = last_place - (slot - S)
    behind = tl.where(behind < 0, behind + P, behind)
    age_RC = behind[None, :] - (M - 1 - m)[:, None]
    in_window = ((slot >= S) & (slot < S + P) & (behind <= last))[None, :]
    visible = in_window & (age_RC >= 0) & (age_RC < WINDOW)
    return visible | ((slot < S)[None, :] & (slot[None, :] <= sees_sinks[:, None]))


@jit
def _merge_splits(
    partial, stats, arrived, out, learned, at_R, asks, N, split, peak_R, total_R, sum_RD,
    H: tl.constexpr, LEARNED: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The splits of a row meet in the program that comes last, in their order, whichever that is."""
    d = tl.arange(0, BLOCK_D)
    inside = asks[:, None] & (d < D)[None, :]
    tl.store(stats + split * 2 * N + at_R, peak_R, mask=asks)
    tl.store(stats + (split * 2 + 1) * N + at_R, total_R, mask=asks)
    tl.store(partial + (split * N + at_R)[:, None] * D + d[None, :], sum_RD, mask=inside)
    tl.debug_barrier()
    ticket = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    if ticket == SPLITS - 1:
        tl.debug_barrier()
        peak_R, total_R, sum_RD = empty_softmax(BLOCK_R, BLOCK_D)
        for other in tl.static_range(SPLITS):
            peak_R, total_R, sum_RD = _merge_one(
                stats + other * 2 * N + at_R, partial + (other * N + at_R)[:, None] * D + d[None, :], N, asks, inside,
                peak_R, total_R, sum_RD,
            )  # fmt: skip
        if LEARNED:
            fade_R, total_R = add_learned(tl.load(learned + at_R % H), peak_R, total_R)
            sum_RD = sum_RD * fade_R[:, None]
        y_RD = sum_RD / tl.where(asks, total_R, 1.0)[:, None]
        tl.store(out + at_R[:, None] * D + d[None, :], y_RD.to(out.dtype.element_ty), mask=inside)
        tl.store(arrived, 0)


@jit(do_not_specialize=["M"])
def _attend_ring(
    q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, k_cache, v_cache, start,
    cos, sin, far_cos, far_sin, partial, stats, arrived, out, M, scale, cap, learned,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr,
    S: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, QUERIES: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    CAPPED: tl.constexpr, LEARNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one split of the slots, one key/value head of one sequence, QUERIES of the M queries."""
    split, bk, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    G: tl.constexpr = H // K
    b, head = bk // K, bk % K
    d = tl.arange(0, BLOCK_D)
    low = split * SPAN
    slot = low + tl.arange(0, SPAN)
    place = (bk * (S + P) + slot)[:, None] * D + d[None, :]
    inside = (slot < S + P)[:, None] & (d < D)[None, :]
    k_CD = tl.load(k_cache + place, mask=inside, other=0.0)
    v_CD = tl.load(v_cache + place, mask=inside, other=0.0)

    first = tl.load(start).to(tl.int32)
    last = first + M - 1 - S
    last_place = last % P

    # The slots of a split belong to it alone, so it writes the new keys that fall there, and reads again.
    # Several groups of queries write the same bytes. What it has read by now can lack keys of this pass: `wait_for_previous`.
    wait_for_previous(PDL)
    r = tl.arange(0, BLOCK_R)
    m = group * QUERIES + r // G
    asks = (r < QUERIES * G) & (m < M)
    q_R = (b * M + m) * q_row + (head * G + r % G) * q_head
    near_RD = load_rotated(q, q_R, asks, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)
    oldest_place = last_place - (M - 1)
    in_ring = (S + last_place >= low) & (S + oldest_place < low + SPAN)
    wrapped = (oldest_place < 0) & (S + oldest_place + P < low + SPAN)
    if in_ring | wrapped | ((first < S) & (low < S)):
        _write_new_keys(
            k, v, k_row, head * k_head, v_row, head * v_head, k_cache, v_cache, cos, sin, first, M, b, bk, low,
            D, F, INTERLEAVED, S, P, SPAN, BLOCK_D,
        )  # fmt: skip
        k_CD = tl.load(k_cache + place, mask=inside, other=0.0)
        v_CD = tl.load(v_cache + place, mask=inside, other=0.0)

    k_DC = tl.trans(k_CD)
    scores_RC = tl.dot(near_RD, k_DC, input_precision="ieee")
    if low < S:
        far_RD = load_rotated(q, q_R, asks, far_cos, far_sin, m, D, F, INTERLEAVED, BLOCK_D)
        far_RC = tl.dot(far_RD, k_DC, input_precision="ieee")
        scores_RC = tl.where((slot < S)[None, :], far_RC, scores_RC)
    visible = _visible(slot, m, first, last, last_place, M, S, P, WINDOW)
    scores_RC = tl.where(visible, scored_tile(scores_RC, scale, cap, CAPPED), float("-inf"))
    peak_R = tl.max(scores_RC, axis=1)
    weight_RC = tl.exp(scores_RC - tl.where(peak_R == float("-inf"), 0.0, peak_R)[:, None])
    total_R = tl.sum(weight_RC, axis=1)
    sum_RD = tl.dot(weight_RC.to(v_CD.dtype), v_CD, input_precision="ieee")
    at_R = (b * M + m) * H + head * G + r % G
    _merge_splits(
        partial, stats, arrived + group * B * K + bk, out, learned, at_R, asks, B * M * H, split,
        peak_R, total_R, sum_RD, H, LEARNED, D, SPLITS, BLOCK_R, BLOCK_D,
    )  # fmt: skip


def attend_ring(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_ring_plain` in one launch."""
    B, M, H, D = q_BMHD.shape
    K, ring, F = k_BMKD.shape[2], cache.ring, angles.cos_MF.shape[1]
    rows = query_rows(H // K)
    queries = rows // (H // K)
    splits = ceil_div(ring.sinks + ring.slots, SPAN)
    processors = multiprocessors(q_BMHD.device)
    warps = 8 if splits * B * K <= processors else 4  # whatever M is: a row is summed alike
    registers = REGISTERS if splits * B * K * ceil_div(M, queries) > 2 * processors else None
    partial = torch.empty(splits, B * M * H, D, dtype=torch.float32, device=q_BMHD.device)
    stats = torch.empty(splits, 2, B * M * H, dtype=torch.float32, device=q_BMHD.device)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    scalars, flags = kernel_arguments(how, out)
    _attend_ring[(splits, B * K, ceil_div(M, queries))](
        q_BMHD, k_BMKD, v_BMKD, *strides(q_BMHD), *strides(k_BMKD), *strides(v_BMKD),
        cache.k_LBKCD[layer], cache.v_LBKCD[layer], start,
        angles.cos_MF, angles.sin_MF, angles.far_cos_MF, angles.far_sin_MF, partial, stats, cache.arrived, out,
        M, *scalars, B, H, K, D, F, how.interleaved, ring.sinks, ring.slots, ring.sliding_window, splits, queries,
        SPAN, rows, max(16, power_of_two(D)), *flags, maxnreg=registers, num_warps=warps, num_stages=1, **launch_options(),
    )  # fmt: skip
    return out
