"""`packing` in Triton: what is kept of new tokens, and the block that has become old in fewer bits."""

from workers.engines.graph.kernels.jit import jit, tl
from workers.engines.graph.kernels.tiles import load_rotated, wait_for_previous


@jit
def _about(low_CD, high_CD, inside_D, OVER: tl.constexpr, LARGEST: tl.constexpr, ZEROS: tl.constexpr):
    """Scale and zero in float32, of what two tiles share along OVER. `low_CD`, `high_CD`: the same tile where they share none."""
    if ZEROS:
        trough = tl.minimum(
            tl.min(tl.where(inside_D, low_CD, float("inf")), axis=OVER, keep_dims=True),
            tl.min(tl.where(inside_D, high_CD, float("inf")), axis=OVER, keep_dims=True),
        )
        peak = tl.maximum(
            tl.max(tl.where(inside_D, low_CD, float("-inf")), axis=OVER, keep_dims=True),
            tl.max(tl.where(inside_D, high_CD, float("-inf")), axis=OVER, keep_dims=True),
        )
    else:
        peak = tl.maximum(
            tl.max(tl.abs(low_CD), axis=OVER, keep_dims=True),
            tl.max(tl.abs(high_CD), axis=OVER, keep_dims=True),
        )
        trough = tl.zeros_like(peak)
    return peak, trough


@jit
def _codes(x_CD, scale, zero, LARGEST: tl.constexpr, ZEROS: tl.constexpr, FP8: tl.constexpr):
    """float32 codes, by scale and zero as they are stored."""
    step = scale.to(tl.float32)
    moved_CD = x_CD - zero.to(tl.float32)
    code_CD = tl.div_rn(moved_CD, tl.where(step > 0, step, 1.0) + tl.zeros_like(moved_CD))
    if not FP8:
        code_CD = tl.floor(code_CD + 0.5)
    if ZEROS:
        return tl.minimum(tl.maximum(code_CD, 0.0), LARGEST)
    return tl.minimum(tl.maximum(code_CD, -LARGEST), LARGEST)


@jit
def _store_codes(
    into, code_CD, first: tl.constexpr, TOKENS: tl.constexpr, OVER: tl.constexpr,
    D: tl.constexpr, COUNT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Codes of tokens `first .. first + COUNT` of the TOKENS of a block: of keys token by token, of values channel by channel."""
    c, d = first + tl.arange(0, COUNT), tl.arange(0, BLOCK_D)
    if OVER == 0:
        tl.store(into + c[:, None] * D + d[None, :], code_CD, mask=(d < D)[None, :])
    else:
        tl.store(into + d[:, None] * TOKENS + c[None, :], tl.trans(code_CD), mask=(d < D)[:, None])


@jit
def _pack(
    held, address, codes_at: tl.constexpr, scales_at: tl.constexpr, zeros_at: tl.constexpr, OVER: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CODE: tl.constexpr,
    LARGEST: tl.constexpr, ZEROS: tl.constexpr, FP8: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Keys (OVER 0: a scale for each channel) or values (OVER 1: one for each token) of one block of one head, in two halves
    of its tokens."""
    HALF: tl.constexpr = BLOCK // 2
    kind = tl.pointer_type(held.dtype.element_ty)
    c, d = tl.arange(0, HALF), tl.arange(0, BLOCK_D)
    inside_D = (d < D)[None, :]
    place = c[:, None] * D + d[None, :]
    low_CD = tl.load(held + place, mask=inside_D, other=0.0).to(tl.float32)
    high_CD = tl.load(held + HALF * D + place, mask=inside_D, other=0.0).to(tl.float32)
    if OVER == 0:
        peak_low, zero_low = _about(low_CD, high_CD, inside_D, OVER, LARGEST, ZEROS)
        peak_high, zero_high = peak_low, zero_low
    else:
        peak_low, zero_low = _about(low_CD, low_CD, inside_D, OVER, LARGEST, ZEROS)
        peak_high, zero_high = _about(high_CD, high_CD, inside_D, OVER, LARGEST, ZEROS)
    zero_low, zero_high = zero_low.to(held.dtype.element_ty), zero_high.to(held.dtype.element_ty)
    span_low, span_high = peak_low - zero_low.to(tl.float32), peak_high - zero_high.to(tl.float32)
    scale_low = tl.div_rn(span_low, tl.full(span_low.shape, LARGEST, tl.float32)).to(held.dtype.element_ty)
    scale_high = tl.div_rn(span_high, tl.full(span_high.shape, LARGEST, tl.float32)).to(held.dtype.element_ty)
    if OVER == 0:
        tl.store((address + scales_at).to(kind) + d[None, :], scale_low, mask=inside_D)
        if ZEROS:
            tl.store((address + zeros_at).to(kind) + d[None, :], zero_low, mask=inside_D)
    else:
        tl.store((address + scales_at).to(kind) + c[:, None], scale_low)
        tl.store((address + scales_at).to(kind) + HALF + c[:, None], scale_high)
        if ZEROS:
            tl.store((address + zeros_at).to(kind) + c[:, None], zero_low)
            tl.store((address + zeros_at).to(kind) + HALF + c[:, None], zero_high)
    code_low_CD = _codes(low_CD, scale_low, zero_low, LARGEST, ZEROS, FP8)
    code_high_CD = _codes(high_CD, scale_high, zero_high, LARGEST, ZEROS, FP8)
    into = (address + codes_at).to(tl.pointer_type(CODE))
    if BITS == 8:
        _store_codes(into, code_low_CD.to(CODE), 0, BLOCK, OVER, D, HALF, BLOCK_D)
        _store_codes(into, code_high_CD.to(CODE), HALF, BLOCK, OVER, D, HALF, BLOCK_D)
    else:
        both_CD = code_low_CD.to(tl.int32) | (code_high_CD.to(tl.int32) << 4)
        _store_codes(into, both_CD.to(tl.uint8).to(CODE, bitcast=True), 0, HALF, OVER, D, HALF, BLOCK_D)


@jit(do_not_specialize=["M", "layer", "places"])
def keep(
    k, v, k_row, k_head, v_row, v_head, recent, sinks, table, layer, start, cos, sin, M, places,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, S: tl.constexpr,
    SIZE: tl.constexpr, V_CODES: tl.constexpr, K_SCALES: tl.constexpr, K_ZEROS: tl.constexpr,
    V_SCALES: tl.constexpr, V_ZEROS: tl.constexpr, CODE: tl.constexpr, LARGEST: tl.constexpr,
    ZEROS: tl.constexpr, FP8: tl.constexpr, BITS: tl.constexpr,
    RECENT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one key/value head of one sequence. `recent`, `sinks`: of one layer, keys before values."""
    wait_for_previous(PDL)
    bk = tl.program_id(0)
    b, head = bk // K, bk % K
    first = tl.load(start).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    of_k = recent + bk.to(tl.int64) * RECENT * BLOCK * D
    of_v = of_k + B * K * RECENT * BLOCK * D
    for j0 in range(0, M, 16):
        j = j0 + tl.arange(0, 16)
        row = (b * M + j).to(tl.int64)
        k_JD = load_rotated(k, row * k_row + head * k_head, j < M, cos, sin, j, D, F, INTERLEAVED, BLOCK_D)
        inside = (j < M)[:, None] & (d < D)[None, :]
        v_JD = tl.load(v + (row * v_row + head * v_head)[:, None] + d[None, :], mask=inside, other=0.0)
        slot = (first + j) % (RECENT * BLOCK)
        tl.store(of_k + slot[:, None] * D + d[None, :], k_JD, mask=inside)
        tl.store(of_v + slot[:, None] * D + d[None, :], v_JD, mask=inside)
        if S > 0:
            is_sink = inside & (first + j < S)[:, None]
            place = sinks + (bk.to(tl.int64) * S + first + j)[:, None] * D + d[None, :]
            tl.store(place, k_JD, mask=is_sink)
            tl.store(place + B * K * S * D, v_JD, mask=is_sink)
    newest = (first + M - 1) // BLOCK
    block = newest - (RECENT - 1)
    if (block >= 0) & (newest * BLOCK >= first):
        address = tl.load(table + block % places) + (layer.to(tl.int64) * B * K + bk) * SIZE
        at = (block % RECENT) * BLOCK * D
        _pack(of_k + at, address, 0, K_SCALES, K_ZEROS, 0, D, BLOCK, BLOCK_D, CODE, LARGEST, ZEROS, FP8, BITS)
        _pack(
            of_v + at,
            address,
            V_CODES,
            V_SCALES,
            V_ZEROS,
            1,
            D,
            BLOCK,
            BLOCK_D,
            CODE,
            LARGEST,
            ZEROS,
            FP8,
            BITS,
        )
