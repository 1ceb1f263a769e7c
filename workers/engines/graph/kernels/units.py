"""Units of a full cache on the device: which of them a program reads, what it stores of each, and how a row's are merged."""

from workers.engines.graph.kernels.jit import jit, tl
from workers.engines.graph.kernels.scores import add_learned


@jit
def unit_of(block, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr):
    """The unit that `block` lies in."""
    octave = block * 0
    for longer in tl.static_range(1, OCTAVES):
        octave += (block >= (OCTAVE << longer)).to(tl.int32)
    return octave * OCTAVE + (block >> octave)


@jit
def first_block(unit, OCTAVE: tl.constexpr):
    octave = tl.maximum(unit // OCTAVE - 1, 0)
    return tl.where(unit < OCTAVE, unit, (OCTAVE + unit % OCTAVE) << octave)


@jit
def first_unit_from(block, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr):
    """The first unit that begins at `block` or behind it."""
    unit = unit_of(block, OCTAVE, OCTAVES)
    return unit + (first_block(unit, OCTAVE) < block).to(tl.int32)


@jit
def share_of(program, programs, blocks, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr, WHOLE: tl.constexpr):
    """The first unit of one of `programs`, and the blocks `begin .. end` of its units. WHOLE: it has all blocks, in no units."""
    unit = program * 0
    begin, end = unit, blocks
    if not WHOLE:
        share = tl.cdiv(blocks, programs)
        unit = first_unit_from(program * share, OCTAVE, OCTAVES)
        begin = first_block(unit, OCTAVE)
        end = first_block(first_unit_from((program + 1) * share, OCTAVE, OCTAVES), OCTAVE)
        end = tl.minimum(end, blocks)
    return unit, begin, end


@jit
def store_unit(
    partial, stats, unit, at_R, asks, N, peak_R, total_R, sum_RD, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    d = tl.arange(0, BLOCK_D)
    stats_R = stats + unit * 2 * N + at_R
    tl.store(stats_R, peak_R, mask=asks)
    tl.store(stats_R + N, total_R, mask=asks)
    inside_RD = asks[:, None] & (d < D)[None, :]
    tl.store(partial + (unit * N + at_R)[:, None] * D + d[None, :], sum_RD, mask=inside_RD)


@jit
def units_seen(first, M, BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr):
    """By the rows of a pass."""
    return unit_of((first + M - 1) // BLOCK, OCTAVE, OCTAVES) + 1


@jit
def add_units(
    partial, stats, s, there, row, N, peak, total, sum_D, D: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """What has been merged of a row, and its units `s`, where they are `there`."""
    d = tl.arange(0, BLOCK_D)
    peak_S = tl.load(stats + s * 2 * N + row, mask=there, other=float("-inf"), cache_modifier=".cg")
    total_S = tl.load(stats + (s * 2 + 1) * N + row, mask=there, other=0.0, cache_modifier=".cg")
    inside_SD = there[:, None] & (d < D)[None, :]
    part_SD = tl.load(
        partial + (s * N + row)[:, None] * D + d[None, :], mask=inside_SD, other=0.0, cache_modifier=".cg"
    )
    new_peak = tl.maximum(peak, tl.max(peak_S, axis=0))
    weight_S = tl.exp(peak_S - new_peak)
    fade = tl.exp(peak - new_peak)
    total = total * fade + tl.sum(weight_S * total_S, axis=0)
    return new_peak, total, sum_D * fade + tl.sum(weight_S[:, None] * part_SD, axis=0)


@jit
def store_row(
    out, learned, row, peak, total, sum_D, H: tl.constexpr, LEARNED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    if LEARNED:
        fade, total = add_learned(tl.load(learned + row % H), peak, total)
        sum_D = sum_D * fade
    tl.store(out + row * D + d, (sum_D / total).to(out.dtype.element_ty), mask=d < D)


@jit
def merge_row(
    partial, stats, out, learned, row, units, N,
    H: tl.constexpr, LEARNED: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row's units in their order. Units that it does not see weigh nothing."""
    peak = tl.max(tl.full((BLOCK_S,), float("-inf"), tl.float32), axis=0)
    total = 0.0
    sum_D = tl.zeros((BLOCK_D,), tl.float32)
    for s0 in tl.range(0, units, BLOCK_S, num_stages=1):
        s = s0 + tl.arange(0, BLOCK_S)
        peak, total, sum_D = add_units(partial, stats, s, s < units, row, N, peak, total, sum_D, D, BLOCK_D)
    store_row(out, learned, row, peak, total, sum_D, H, LEARNED, D, BLOCK_D)
