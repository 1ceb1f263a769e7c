"""Attention of a prompt's chunk over sinks, the window before it and itself. The chunk may be longer than the ring.

What the chunk's queries see of the past is read from the ring, the rest from the chunk's own keys; only then the
chunk's last keys go into the ring. `attend_ring` writes first and reads afterwards: it is for short passes.
"""

from dataclasses import dataclass

import torch

from workers.engines.graph.kernels.attend_blocks import grouped, strides, ungrouped
from workers.engines.graph.kernels.attend_prompt import rotate_heads
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.scores import (
    add_learned,
    kernel_arguments,
    learned_rows,
    scored,
    scored_tile,
    weighted,
)
from workers.engines.graph.kernels.tiles import empty_softmax, load_rotated, online_softmax, wait_for_previous
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import Angles, rotate
from workers.engines.graph.weights import Attention
from workers.engines.shared.rope import working
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import RING_QUERIES


def attend_window_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """[B, M, H * D]. Leaves the last keys of positions `start .. start + M` in the ring of one layer."""
    ring, first, M = cache.ring, int(start), q_BMHD.shape[1]
    k_BKMD = rotate(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved).transpose(1, 2)
    v_BKMD = v_BMKD.transpose(1, 2)
    in_cache = cache.k_LBKCD[layer], cache.v_LBKCD[layer]
    fresh_sinks = max(0, min(ring.sinks - first, M))
    origin = max(ring.sinks, first - ring.sliding_window + 1)  # of the keys beside the sinks
    past_slot = ring.slot(torch.arange(origin, max(origin, first), device=start.device))
    sinks, others = [], []
    for held_BKCD, new_BKMD in zip(in_cache, (k_BKMD, v_BKMD), strict=True):
        held_BKCD[:, :, first : first + fresh_sinks] = new_BKMD[:, :, :fresh_sinks]
        sinks.append(held_BKCD[:, :, : ring.sinks])
        others.append(
            torch.cat([held_BKCD[:, :, past_slot], new_BKMD[:, :, max(0, origin - first) :]], dim=2)
        )
    near_BMHD = rotate(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved)
    far_BMHD = rotate(q_BMHD, angles.far_cos_MF, angles.far_sin_MF, how.interleaved)
    attended = []
    for begin in range(0, M, RING_QUERIES):
        end = min(begin + RING_QUERIES, M)
        seen = slice(max(0, first + begin - ring.sliding_window + 1 - origin), max(0, first + end - origin))
        attended.append(
            _attend(
                ring, how, first + begin, origin + seen.start, near_BMHD[:, begin:end], far_BMHD[:, begin:end],
                (sinks[0], others[0][:, :, seen]), (sinks[1], others[1][:, :, seen]),
            )
        )  # fmt: skip
    kept = min(M, ring.slots)
    slot = ring.slot(first + torch.arange(M - kept, M, device=start.device))
    for held_BKCD, new_BKMD in zip(in_cache, (k_BKMD, v_BKMD), strict=True):
        held_BKCD.index_copy_(2, slot, new_BKMD[:, :, M - kept :])
    return torch.cat(attended, dim=1)


def _attend(
    ring: RingSlots,
    how: Attention,
    first_query: int,
    first_key: int,
    near_BQHD: torch.Tensor,
    far_BQHD: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """[B, Q, H * D] of consecutive queries over the sinks and consecutive positions from `first_key` on."""
    Q, H = near_BQHD.shape[1:3]
    K, dtype, device = keys[0].shape[1], working(near_BQHD.dtype), near_BQHD.device
    far_BKRS = grouped(far_BQHD, K) @ keys[0].to(dtype).transpose(2, 3)
    near_BKRC = grouped(near_BQHD, K) @ keys[1].to(dtype).transpose(2, 3)
    query_Q = first_query + torch.arange(Q, device=device)
    age_QC = query_Q[:, None] - (first_key + torch.arange(keys[1].shape[2], device=device))
    sees_sink_QS = torch.arange(ring.sinks, device=device) <= query_Q[:, None]
    visible_QC = torch.cat([sees_sink_QS, (age_QC >= 0) & (age_QC < ring.sliding_window)], dim=1)
    scores_BKRC = scored(torch.cat([far_BKRS, near_BKRC], dim=3), how)
    visible_RC = visible_QC.repeat_interleave(H // K, dim=0)
    hidden_BKRC = scores_BKRC.masked_fill(~visible_RC, -torch.inf)
    weights_BKRC = weighted(hidden_BKRC, learned_rows(how, K, Q, hidden_BKRC))
    return ungrouped(weights_BKRC @ torch.cat(values, dim=2).to(dtype), Q).to(near_BQHD.dtype)


@dataclass(frozen=True, slots=True)
class WindowSplit:
    """`queries` of one program, `keys` that it reads at once."""

    queries: int
    keys: int
    warps: int
    stages: int


CUT = WindowSplit(queries=64, keys=64, warps=4, stages=2)
#: Float32 is multiplied without tensor cores, in registers.
CUT_FLOAT32 = WindowSplit(queries=16, keys=32, warps=4, stages=1)


@jit
def _load_keys(
    held, new, new_row, position, inside, first, bk, b_rows,
    D: tl.constexpr, S: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[C, BLOCK_D]: those before the chunk from the ring, those of the chunk from itself."""
    d = tl.arange(0, BLOCK_D)
    slot = tl.where(position < S, position, S + (position - S) % P)
    held_C = held + (bk * (S + P) + slot).to(tl.int64) * D
    new_C = new + (b_rows + position - first).to(tl.int64) * new_row
    place_C = tl.where(position < first, held_C, new_C)
    return tl.load(place_C[:, None] + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)


@jit(do_not_specialize=["M"])
def _attend_window(
    q, q_row, q_head, k, k_row, v, v_row, v_head, k_cache, v_cache, start, cos, sin, far_cos, far_sin, out, M,
    scale, cap, learned,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
    WINDOW: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
    CAPPED: tl.constexpr, LEARNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES tokens of one query head."""
    wait_for_previous(PDL)
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = h // (H // K)
    bk = b * K + head
    first = tl.load(start).to(tl.int32)
    m = tile * QUERIES + tl.arange(0, QUERIES)
    query = first + m
    q_R = (b * M + m).to(tl.int64) * q_row + h * q_head
    near_RD = load_rotated(q, q_R, m < M, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)
    peak_R, total_R, sum_RD = empty_softmax(QUERIES, BLOCK_D)
    if S > 0:
        far_RD = load_rotated(q, q_R, m < M, far_cos, far_sin, m, D, F, INTERLEAVED, BLOCK_D)
        for s0 in range(0, S, 16):
            sink = s0 + tl.arange(0, 16)
            there = (sink < S) & (sink < first + M)
            k_CD = _load_keys(k_cache, k + head * D, k_row, sink, there, first, bk, b * M, D, S, P, BLOCK_D)
            v_CD = _load_keys(
                v_cache, v + head * v_head, v_row, sink, there, first, bk, b * M, D, S, P, BLOCK_D
            )
            scores_RC = tl.dot(far_RD, tl.trans(k_CD), input_precision="ieee")
            visible = there[None, :] & (sink[None, :] <= query[:, None])
            scores_RC = tl.where(visible, scored_tile(scores_RC, scale, cap, CAPPED), float("-inf"))
            peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
    end = tl.minimum(first + M, first + (tile + 1) * QUERIES)
    for begin in range(tl.maximum(S, first + tile * QUERIES - WINDOW + 1), end, KEYS):
        position = begin + tl.arange(0, KEYS)
        there = position < end
        k_CD = _load_keys(k_cache, k + head * D, k_row, position, there, first, bk, b * M, D, S, P, BLOCK_D)
        v_CD = _load_keys(
            v_cache, v + head * v_head, v_row, position, there, first, bk, b * M, D, S, P, BLOCK_D
        )
        scores_RC = tl.dot(near_RD, tl.trans(k_CD), input_precision="ieee")
        age_RC = query[:, None] - position[None, :]
        scores_RC = scored_tile(scores_RC, scale, cap, CAPPED)
        scores_RC = tl.where((age_RC >= 0) & (age_RC < WINDOW), scores_RC, float("-inf"))
        peak_R, total_R, sum_RD = online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD)
    d = tl.arange(0, BLOCK_D)
    place = out + ((b * M + m).to(tl.int64) * H + h)[:, None] * D + d[None, :]
    if LEARNED:
        fade_R, total_R = add_learned(tl.load(learned + h), peak_R, total_R)
        sum_RD = sum_RD * fade_R[:, None]
    y_RD = sum_RD / tl.where(m < M, total_R, 1.0)[:, None]
    tl.store(place, y_RD.to(out.dtype.element_ty), mask=(m < M)[:, None] & (d < D)[None, :])


@jit(do_not_specialize=["M"])
def _keep(
    k, k_row, v, v_row, v_head, k_cache, v_cache, start, M,
    K: tl.constexpr, D: tl.constexpr, S: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: 16 of the chunk's last P tokens, or 16 of its sinks, and one key/value head."""
    wait_for_previous(PDL)
    tile, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(start).to(tl.int32)
    last_tiles = tl.cdiv(tl.minimum(M, P), 16)
    j = tl.maximum(M - P, 0) + tile * 16 + tl.arange(0, 16)
    mine = j < M
    if tile >= last_tiles:
        j = (tile - last_tiles) * 16 + tl.arange(0, 16) - first
        mine = (j >= 0) & (j < M) & (first + j < S)
    position = first + j
    slot = tl.where(position < S, position, S + (position - S) % P)
    d = tl.arange(0, BLOCK_D)
    inside = mine[:, None] & (d < D)[None, :]
    row = (b * M + j).to(tl.int64)
    place = ((b * K + head) * (S + P) + slot).to(tl.int64)[:, None] * D + d[None, :]
    k_JD = tl.load(k + (row * k_row + head * D)[:, None] + d[None, :], mask=inside, other=0.0)
    v_JD = tl.load(v + (row * v_row + head * v_head)[:, None] + d[None, :], mask=inside, other=0.0)
    tl.store(k_cache + place, k_JD, mask=inside)
    tl.store(v_cache + place, v_JD, mask=inside)


def attend_window(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_window_plain` in three launches: the chunk's keys rotated, the attention, the ring's new keys."""
    B, M, H, D = q_BMHD.shape
    K, ring, F = k_BMKD.shape[2], cache.ring, angles.cos_MF.shape[1]
    cut = CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CUT
    block_d = max(16, power_of_two(D))
    k_BMKD = rotate_heads(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved)
    out = torch.empty(B, M, H * D, dtype=q_BMHD.dtype, device=q_BMHD.device)
    scalars, flags = kernel_arguments(how, out)
    _attend_window[(ceil_div(M, cut.queries), H, B)](
        q_BMHD, *strides(q_BMHD), k_BMKD, K * D, v_BMKD, *strides(v_BMKD), cache.k_LBKCD[layer], cache.v_LBKCD[layer],
        start, angles.cos_MF, angles.sin_MF, angles.far_cos_MF, angles.far_sin_MF, out, M, *scalars,
        H, K, D, F, how.interleaved, ring.sinks, ring.slots, ring.sliding_window, cut.queries, cut.keys, block_d, *flags,
        num_warps=cut.warps, num_stages=cut.stages, **launch_options(),
    )  # fmt: skip
    _keep[(ceil_div(min(M, ring.slots), 16) + ceil_div(ring.sinks, 16), K, B)](
        k_BMKD, K * D, v_BMKD, *strides(v_BMKD), cache.k_LBKCD[layer], cache.v_LBKCD[layer], start, M,
        K, D, ring.sinks, ring.slots, block_d, num_warps=4, **launch_options(),
    )  # fmt: skip
    return out
