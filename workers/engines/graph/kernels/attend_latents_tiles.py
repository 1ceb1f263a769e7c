"""`attend_latents` in Triton. Decoding takes five launches, the same at every length: queries made as wide as a latent, the new
rows kept, the attention, its merge, what was read made as wide as heads. A ring merges as it reads.

One key/value head serves all query heads, so a program has the query heads of one token after the other as its rows.
"""

from dataclasses import dataclass

import torch

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import (
    OCTAVE,
    OCTAVES,
    _merge,
    programs_of,
    strides,
    units_of,
)
from workers.engines.graph.kernels.attend_latents import latent_of
from workers.engines.graph.kernels.attend_packed import in_pieces
from workers.engines.graph.kernels.attend_ring import _merge_splits, _visible
from workers.engines.graph.kernels.jit import (
    ceil_div,
    jit,
    launch_options,
    multiprocessors,
    power_of_two,
    tickets,
    tl,
)
from workers.engines.graph.kernels.norm import apply, statistics
from workers.engines.graph.kernels.tiles import (
    empty_softmax,
    load_rotated,
    online_softmax,
    wait_for_previous,
)
from workers.engines.graph.kernels.units import first_block, share_of, store_unit
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention, Latent
from workers.engines.sizes import BLOCK, LATENT_QUERIES


@jit(do_not_specialize=["rows"])
def _by_head(
    x, x_row, x_head, w, w_head, w_out, w_in, y, y_row, y_head, rows,
    IN: tl.constexpr, OUT: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: some outputs of one head, by that head's matrix."""
    head = tl.program_id(1)
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows_R = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_O, inside_R = outputs_O < OUT, rows_R < rows
    w_O = w + head * w_head + outputs_O * w_out
    x_R = x + head * x_head + rows_R * x_row
    wait_for_previous(PDL)
    y_OR = tl.zeros((BLOCK_O, BLOCK_R), tl.float32)
    for depth in range(0, IN, BLOCK_I):
        depth_I = depth + tl.arange(0, BLOCK_I)
        inside_I = depth_I < IN
        w_OI = tl.load(
            w_O[:, None] + (depth_I * w_in)[None, :], mask=inside_O[:, None] & inside_I[None, :], other=0.0
        )
        x_IR = tl.load(x_R[None, :] + depth_I[:, None], mask=inside_R[None, :] & inside_I[:, None], other=0.0)
        y_OR = tl.dot(w_OI, x_IR, y_OR, input_precision="ieee")
    place_OR = y + head * y_head + rows_R[None, :] * y_row + outputs_O[:, None]
    tl.store(place_OR, y_OR.to(y.dtype.element_ty), mask=inside_O[:, None] & inside_R[None, :])


def by_head(x_BMHI: torch.Tensor, matrix_HOI: torch.Tensor) -> torch.Tensor:
    """[B, M, H, O]: each head by its own matrix. A row is summed alike however many there are."""
    B, M, H, _ = x_BMHI.shape
    OUT, IN = matrix_HOI.shape[1:]
    y_BMHO = x_BMHI.new_empty(B, M, H, OUT)
    # Few heads: programs of fewer outputs, so that all multiprocessors have one.
    outputs = 64 if H * ceil_div(OUT, 64) >= multiprocessors(x_BMHI.device) else 16
    _by_head[(ceil_div(OUT, outputs), H, ceil_div(B * M, 16))](
        x_BMHI, *strides(x_BMHI), matrix_HOI, *matrix_HOI.stride(), y_BMHO, *strides(y_BMHO), B * M,
        IN, OUT, outputs, min(64, max(16, power_of_two(IN))), 16, num_warps=4, num_stages=3, **launch_options(),
    )  # fmt: skip
    return y_BMHO


@jit(do_not_specialize=["M", "layer"])
def _keep(
    x, weight, eps, to, layer, start, cos, sin, M,
    B: tl.constexpr, Z: tl.constexpr, T: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    RING: tl.constexpr, S: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_Z: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: the row of one token, its latent normed, the rest rotated. `to`: the slots of a layer, or the table of
    blocks."""
    wait_for_previous(PDL)
    m, b = tl.program_id(0), tl.program_id(1)
    one, z, t = tl.arange(0, 1), tl.arange(0, BLOCK_Z), tl.arange(0, BLOCK_T)
    position = tl.load(start).to(tl.int32) + m
    row = (b * M + m).to(tl.int64) * (Z + T)
    if RING:
        slot = tl.where(position < S, position, S + (position - S) % P)
        place = to + (b * (S + P) + slot).to(tl.int64) * (Z + T)
    else:
        block = tl.load(to + position // BLOCK).to(tl.pointer_type(x.dtype.element_ty))
        place = block + ((layer * B + b).to(tl.int64) * BLOCK + position % BLOCK) * (Z + T)
    mean, square = statistics(x + row, Z, NORM, BLOCK_Z)
    x_Z = tl.load(x + row + z, mask=z < Z, other=0.0)
    weight_Z = tl.load(weight + z, mask=z < Z, other=0.0)
    y_Z = apply(x_Z, mean, 1.0 / tl.sqrt(square + eps), weight_Z, weight_Z, NORM)
    tl.store(place + z, y_Z, mask=z < Z)
    y_RT = load_rotated(x, row + Z + one, one < 1, cos, sin, m + one, T, F, INTERLEAVED, BLOCK_T)
    tl.store(place + Z + (one[:, None] + t[None, :]), y_RT, mask=(one[:, None] + t[None, :]) < T)


def keep(
    k_BM1W: torch.Tensor, cache: FullCache | RingCache, layer: int, start: torch.Tensor, angles: Angles, how: Attention
) -> None:  # fmt: skip
    """Write the rows of positions `start .. start + M`."""
    latent, (B, M) = latent_of(how), k_BM1W.shape[:2]
    is_ring = isinstance(cache, RingCache)
    sinks, slots = (cache.ring.sinks, cache.ring.slots) if isinstance(cache, RingCache) else (0, 1)
    to = cache.k_LBKCD[layer] if isinstance(cache, RingCache) else cache.table
    _keep[(M, B)](
        k_BM1W, latent.norm.weight_E, latent.norm.eps, to, layer, start, angles.cos_MF, angles.sin_MF, M,
        B, latent.rank, latent.turned, angles.cos_MF.shape[1], how.interleaved, latent.norm.kind,
        is_ring, sinks, slots, BLOCK, power_of_two(latent.rank), power_of_two(latent.turned), num_warps=4, **launch_options(),
    )  # fmt: skip


@jit
def _load_rows(place_C, inside_C, Z: tl.constexpr, T: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """The latents and the rotated parts of the rows that begin at `place_C`."""
    z, t = tl.arange(0, BLOCK_Z), tl.arange(0, BLOCK_T)
    k_CZ = tl.load(place_C[:, None] + z[None, :], mask=inside_C[:, None] & (z < Z)[None, :], other=0.0)
    k_CT = tl.load(place_C[:, None] + (Z + t)[None, :], mask=inside_C[:, None] & (t < T)[None, :], other=0.0)
    return k_CZ, k_CT


@jit
def _store_whole(
    out, at_R, asks, total_R, sum_RD,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of a program that has seen all that its rows see."""
    d = tl.arange(0, BLOCK_D)
    y_RD = sum_RD / tl.where(asks, total_R, 1.0)[:, None]
    inside_RD = asks[:, None] & (d < D)[None, :]
    tl.store(out + at_R[:, None] * D + d[None, :], y_RD.to(out.dtype.element_ty), mask=inside_RD)


@jit(do_not_specialize=["M", "layer", "offset"])
def _attend_blocks(
    inner, q, q_row, q_head, table, layer, start, offset, cos, sin, partial, stats, out, M, scale,
    B: tl.constexpr, H: tl.constexpr, D: tl.constexpr, Z: tl.constexpr, T: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: its share of the blocks, one sequence, BLOCK_R query heads of neighbouring tokens. `inner`: their wide part;
    `q`: whole queries, whose numbers from D on are rotated. The first of them sits at `start + offset`."""
    b, group = tl.program_id(1), tl.program_id(2)
    wait_for_previous(PDL)
    first = tl.load(start).to(tl.int32) + offset
    unit, begin, end = share_of(
        tl.program_id(0), tl.num_programs(0), tl.cdiv(first + M, BLOCK), OCTAVE, OCTAVES, WHOLE
    )
    at = group * BLOCK_R + tl.arange(0, BLOCK_R)
    m, h = at // H, at % H
    if WHOLE:  # what its last row sees
        end = tl.minimum(end, tl.cdiv(first + 1 + (group * BLOCK_R + BLOCK_R - 1) // H, BLOCK))
    if begin < end:
        PARTS: tl.constexpr = BLOCK // KEYS
        asks = m < M
        at_R = (b * M).to(tl.int64) * H + at
        z, c = tl.arange(0, BLOCK_Z), tl.arange(0, KEYS)
        q_RZ = tl.load(
            inner + at_R[:, None] * Z + z[None, :], mask=asks[:, None] & (z < Z)[None, :], other=0.0
        )
        q_R = (b * M + m).to(tl.int64) * q_row + h * q_head + D
        q_RT = load_rotated(q, q_R, asks, cos, sin, m, T, F, INTERLEAVED, BLOCK_T)
        peak_R, total_R, sum_RZ = empty_softmax(BLOCK_R, BLOCK_Z)
        address = tl.load(table + begin)  # read one ahead, so that the loads of a block wait for nothing
        for index in range(begin * PARTS, end * PARTS):
            position = index * KEYS + c
            block = tl.multiple_of(address.to(tl.pointer_type(q.dtype.element_ty)), 16)
            address = tl.load(table + (index + 1) // PARTS)
            here = (layer * B + b).to(tl.int64) * BLOCK + index % PARTS * KEYS
            k_CZ, k_CT = _load_rows(
                block + (here + c) * (Z + T), position < first + M, Z, T, BLOCK_Z, BLOCK_T
            )
            products_RC = tl.dot(q_RZ, tl.trans(k_CZ), input_precision="ieee")
            products_RC = tl.dot(q_RT, tl.trans(k_CT), products_RC, input_precision="ieee")
            visible_RC = position[None, :] <= (first + m)[:, None]
            scores_RC = tl.where(visible_RC, products_RC * scale, float("-inf"))
            peak_R, total_R, sum_RZ = online_softmax(scores_RC, k_CZ, peak_R, total_R, sum_RZ)
            if not WHOLE:  # noqa: SIM102  (decided when compiled; the next one on the device)
                if ((index + 1) % PARTS == 0) & (
                    (index + 1 == end * PARTS) | ((index + 1) // PARTS == first_block(unit + 1, OCTAVE))
                ):
                    store_unit(
                        partial, stats, unit, at_R, asks, B * M * H, peak_R, total_R, sum_RZ, Z, BLOCK_Z
                    )
                    peak_R, total_R, sum_RZ = empty_softmax(BLOCK_R, BLOCK_Z)
                    unit += 1
        if WHOLE:
            _store_whole(out, at_R, asks, total_R, sum_RZ, Z, BLOCK_Z)


@jit(do_not_specialize=["M"])
def _attend_ring(
    inner, q, q_row, q_head, rows, start, cos, sin, far_cos, far_sin, partial, stats, arrived, out, M, scale,
    B: tl.constexpr, H: tl.constexpr, D: tl.constexpr, Z: tl.constexpr, T: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr,
    S: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: SPAN slots of one sequence, BLOCK_R query heads of neighbouring tokens."""
    split, b, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait_for_previous(PDL)
    first = tl.load(start).to(tl.int32)
    last = first + M - 1 - S
    slot = split * SPAN + tl.arange(0, SPAN)
    place_C = rows + (b * (S + P) + slot).to(tl.int64) * (Z + T)
    k_CZ, k_CT = _load_rows(place_C, slot < S + P, Z, T, BLOCK_Z, BLOCK_T)
    at = group * BLOCK_R + tl.arange(0, BLOCK_R)
    m, h = at // H, at % H
    asks = m < M
    at_R = b * M * H + at
    z = tl.arange(0, BLOCK_Z)
    q_RZ = tl.load(inner + at_R[:, None] * Z + z[None, :], mask=asks[:, None] & (z < Z)[None, :], other=0.0)
    q_R = (b * M + m) * q_row + h * q_head + D
    near_RT = load_rotated(q, q_R, asks, cos, sin, m, T, F, INTERLEAVED, BLOCK_T)
    turned_RC = tl.dot(near_RT, tl.trans(k_CT), input_precision="ieee")
    if split * SPAN < S:
        far_RT = load_rotated(q, q_R, asks, far_cos, far_sin, m, T, F, INTERLEAVED, BLOCK_T)
        far_RC = tl.dot(far_RT, tl.trans(k_CT), input_precision="ieee")
        turned_RC = tl.where((slot < S)[None, :], far_RC, turned_RC)
    products_RC = tl.dot(q_RZ, tl.trans(k_CZ), turned_RC, input_precision="ieee")
    visible_RC = _visible(slot, m, first, last, last % P, M, S, P, WINDOW)
    scores_RC = tl.where(visible_RC, products_RC * scale, float("-inf"))
    peak_R, total_R, sum_RZ = empty_softmax(BLOCK_R, BLOCK_Z)
    peak_R, total_R, sum_RZ = online_softmax(scores_RC, k_CZ, peak_R, total_R, sum_RZ)
    _merge_splits(
        partial, stats, arrived + group * B + b, out, out, at_R, asks, B * M * H, split,
        peak_R, total_R, sum_RZ, H, False, Z, SPLITS, BLOCK_R, BLOCK_Z,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LatentSplit:
    """Of a program: `rows` of its query tile, `keys` that it reads at once, `warps`, `stages` of its loads."""

    rows: int
    keys: int
    warps: int
    stages: int


#: A row is computed alike in a pass of one token and of many: one number of rows for both. Measured on an H200.
CUT = LatentSplit(rows=16, keys=32, warps=4, stages=3)
CUT_OF_RING = LatentSplit(rows=16, keys=64, warps=8, stages=1)
CUT_OF_CHUNK = LatentSplit(rows=64, keys=32, warps=8, stages=2)
#: Float32 is multiplied without tensor cores, in registers.
CUT_FLOAT32 = LatentSplit(rows=16, keys=16, warps=4, stages=1)


def _shape(q_BMHD: torch.Tensor, latent: Latent, angles: Angles, how: Attention) -> tuple[int, ...]:
    """H, D, Z, T, F of a kernel, and whether neighbours are rotated."""
    H, whole = q_BMHD.shape[2:]
    frequencies = angles.cos_MF.shape[1]
    return H, whole - latent.turned, latent.rank, latent.turned, frequencies, how.interleaved


def attend_latent_blocks(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_latent_blocks_plain` for a short pass."""
    latent, (B, M, H, _) = latent_of(how), q_BMHD.shape
    cut = CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CUT
    keep(k_BMKD, cache, layer, start, angles, how)
    shape = _shape(q_BMHD, latent, angles, how)
    inner_BMHZ = by_head(q_BMHD[..., : shape[1]], latent.keys_HZD)
    device, N, Z = q_BMHD.device, B * M * H, latent.rank
    groups, units = ceil_div(M * H, cut.rows), units_of(ceil_div(cache.most_tokens, BLOCK))
    partial = torch.empty(units, N, Z, dtype=torch.float32, device=device)
    stats = torch.empty(units, 2, N, dtype=torch.float32, device=device)
    sum_BMHZ = torch.empty_like(inner_BMHZ)
    block_z, block_t = max(16, power_of_two(Z)), max(16, power_of_two(latent.turned))
    _attend_blocks[(programs_of(B * groups, multiprocessors(device)), B, groups)](
        inner_BMHZ, q_BMHD, *strides(q_BMHD), cache.table, layer, start, 0, angles.cos_MF, angles.sin_MF, partial, stats, sum_BMHZ, M,
        how.scale, B, *shape, BLOCK, cut.keys, OCTAVE, OCTAVES, False, cut.rows, block_z, block_t,
        num_warps=cut.warps, num_stages=cut.stages, **launch_options(),
    )  # fmt: skip
    _merge[(N,)](
        partial, stats, start, sum_BMHZ, sum_BMHZ, M, N, H, False, Z, BLOCK, OCTAVE, OCTAVES, 16, block_z, num_warps=4,
        **launch_options(),
    )  # fmt: skip
    return by_head(sum_BMHZ, latent.values_HDZ).flatten(2)


def attend_latent_chunk(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_latent_blocks_plain` for a prompt, or a chunk of one: its queries are programs enough, so nothing is merged."""
    latent, (B, M) = latent_of(how), q_BMHD.shape[:2]
    cut = CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CUT_OF_CHUNK
    keep(k_BMKD, cache, layer, start, angles, how)
    shape = _shape(q_BMHD, latent, angles, how)
    block_z, block_t = max(16, power_of_two(latent.rank)), max(16, power_of_two(latent.turned))
    found = []
    for begin in range(0, M, LATENT_QUERIES):
        q_BQHD = q_BMHD[:, begin : begin + LATENT_QUERIES].contiguous()
        queries = q_BQHD.shape[1]
        inner_BQHZ = torch.einsum("bmhd,hzd->bmhz", q_BQHD[..., : shape[1]], latent.keys_HZD).contiguous()
        sum_BQHZ = torch.empty_like(inner_BQHZ)
        _attend_blocks[(1, B, ceil_div(queries * shape[0], cut.rows))](
            inner_BQHZ, q_BQHD, *strides(q_BQHD), cache.table, layer, start, begin, angles.cos_MF[begin:], angles.sin_MF[begin:],
            sum_BQHZ, sum_BQHZ, sum_BQHZ, queries, how.scale, B, *shape, BLOCK, cut.keys, OCTAVE, OCTAVES, True,
            cut.rows, block_z, block_t, num_warps=cut.warps, num_stages=cut.stages, **launch_options(),
        )  # fmt: skip
        found.append(torch.einsum("bmhz,hdz->bmhd", sum_BQHZ, latent.values_HDZ).flatten(2))
    return torch.cat(found, 1)


def _attend_latent_ring(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    latent, (B, M, H, _), ring = latent_of(how), q_BMHD.shape, cache.ring
    cut = CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CUT_OF_RING
    keep(k_BMKD, cache, layer, start, angles, how)
    shape = _shape(q_BMHD, latent, angles, how)
    inner_BMHZ = by_head(q_BMHD[..., : shape[1]], latent.keys_HZD)
    device, N = q_BMHD.device, B * M * H
    groups, splits = ceil_div(M * H, cut.rows), ceil_div(ring.total, cut.keys)
    partial = torch.empty(splits, N, latent.rank, dtype=torch.float32, device=device)
    stats = torch.empty(splits, 2, N, dtype=torch.float32, device=device)
    sum_BMHZ = torch.empty_like(inner_BMHZ)
    _attend_ring[(splits, B, groups)](
        inner_BMHZ, q_BMHD, *strides(q_BMHD), cache.k_LBKCD[layer], start,
        angles.cos_MF, angles.sin_MF, angles.far_cos_MF, angles.far_sin_MF, partial, stats, tickets(B * groups, device), sum_BMHZ,
        M, how.scale, B, *shape, ring.sinks, ring.slots, ring.sliding_window, splits, cut.keys, cut.rows,
        max(16, power_of_two(latent.rank)), max(16, power_of_two(latent.turned)),
        num_warps=cut.warps, num_stages=1, **launch_options(),
    )  # fmt: skip
    return by_head(sum_BMHZ, latent.values_HDZ).flatten(2)


#: `attend_latent_ring_plain`.
attend_latent_ring = in_pieces(_attend_latent_ring)
