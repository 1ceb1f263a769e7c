"""A parallel residual in one launch: some programs attend, the others add the products of what was attended and of the MLP.

Attention is short of work: a chain of waits for memory, in few programs. The MLP's product asks nothing of it and reads the
bytes of several such chains. So the two run beside each other; a program that adds products takes the columns that
attention gives last, and has read the weights for them by then.

Programs that attend come first: a multiprocessor takes programs in their order, so that nobody waits for one that finds
no room.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import (
    OCTAVE,
    OCTAVES,
    UNITS,
    attend_blocks,
    query_rows,
    read_blocks,
    strides,
    units_of,
)
from workers.engines.graph.kernels.attend_latents_tiles import attend_latent_blocks, attend_latent_ring
from workers.engines.graph.kernels.attend_packed_tiles import attend_packed
from workers.engines.graph.kernels.attend_ring import (
    SPAN,
    attend_ring,
    load_queries,
    load_span,
    merge_spans,
    read_span,
    store_span,
    write_span,
)
from workers.engines.graph.kernels.down_proj import (
    TILE,
    Products,
    add_products,
    attended_counters,
    down_proj,
    products_of,
)
from workers.engines.graph.kernels.jit import (
    ceil_div,
    jit,
    launch_options,
    multiprocessors,
    power_of_two,
    tickets,
    tl,
)
from workers.engines.graph.kernels.residual import Residual
from workers.engines.graph.kernels.scores import kernel_arguments
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.kernels.units import merge_row, share_of, units_seen
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention, Linear
from workers.engines.sizes import BLOCK

#: Programs of both kinds that run together on a multiprocessor: so that each has registers enough, and nobody waits in vain.
AT_ONCE = 3
REGISTERS = 65536 // (AT_ONCE * TILE.warps * 32) // 8 * 8
#: Of the loads of weights: with more, fewer programs would find room.
STAGES = 4
#: The longest ring, in slots, that is read beside products.
MOST_SLOTS = 0
#: The longest full cache that is read beside products: behind more tokens attention is no longer the shorter of the two.
MOST_TOKENS = 2048


@jit
def tell_attended(attended):
    """One more head has been attended, and what was written of it may be read."""
    tl.debug_barrier()
    tl.atomic_add(attended, 1, sem="release", scope="gpu")


@jit(do_not_specialize=["M", "rows"])
def _ring_beside_products(
    q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, k_cache, v_cache, start,
    cos, sin, far_cos, far_sin, partial, stats, arrived, attended, M, scale, cap, learned,
    x, a0, w0, a1, w1, b0, b1, y, moments, sums, met, factor, OUT, rows, in0, in1, tiles, attending, programs,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr,
    S: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, SPANS: tl.constexpr, QUERIES: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr, LEARNED: tl.constexpr,
    ADDS: tl.constexpr, SCALED: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, BIASED0: tl.constexpr, BIASED1: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`attending` programs read the ring, `programs` of them one head; the others add products."""
    program = tl.program_id(0)
    if program < attending:
        G: tl.constexpr = H // K
        heads = attending // programs
        bk, group = program % heads % (B * K), program % heads // (B * K)
        first = tl.load(start).to(tl.int32)
        wait_for_previous(PDL)
        r = tl.arange(0, BLOCK_R)
        m = group * QUERIES + r // G
        asks = (r < QUERIES * G) & (m < M)
        at_R = (bk // K * M + m) * H + bk % K * G + r % G
        share = tl.cdiv(SPANS, programs)
        begin = program // heads * share
        end = tl.minimum(begin + share, SPANS)
        for span in tl.range(begin, end, num_stages=1):
            write_span(
                k, v, k_row, k_head, v_row, v_head, k_cache, v_cache, cos, sin, first, M, span, bk,
                K, D, F, INTERLEAVED, S, P, SPAN, BLOCK_D,
            )  # fmt: skip
        near_RD = load_queries(q, q_row, q_head, cos, sin, m, asks, bk, M, H, K, D, F, INTERLEAVED, BLOCK_D)
        far_RD = near_RD
        if begin * SPAN < S:
            far_RD = load_queries(
                q, q_row, q_head, far_cos, far_sin, m, asks, bk, M, H, K, D, F, INTERLEAVED, BLOCK_D
            )
        for span in tl.range(begin, end, num_stages=2):
            k_CD, v_CD = load_span(k_cache, v_cache, span, bk, D, S, P, SPAN, BLOCK_D)
            peak_R, total_R, sum_RD = read_span(
                k_CD, v_CD, near_RD, far_RD, first, m, M, scale, cap, span, S, P, WINDOW, SPAN, CAPPED
            )
            store_span(partial, stats, at_R, asks, B * M * H, span, peak_R, total_R, sum_RD, D, BLOCK_D)
        last = merge_spans(
            partial, stats, arrived + group * B * K + bk, a0, learned, at_R, asks, B * M * H, programs,
            H, LEARNED, D, SPANS, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        if last:
            tell_attended(attended)
    else:
        program -= attending
        add_products(
            x, a0, w0, a1, w1, b0, b1, y, moments, sums, met, factor, OUT, rows, in0, in1,
            program % tiles, tiles, program // tiles % SPLITS, program // tiles // SPLITS, attended, attending // programs,
            ADDS, SCALED, SPLITS, PARTS, BIASED0, BIASED1, EVEN, BLOCK_O, BLOCK_I, ROWS, AHEAD, True, PDL,
        )  # fmt: skip


@jit(do_not_specialize=["M", "rows", "layer"])
def _blocks_beside_products(
    q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, table, layer, start,
    cos, sin, partial, stats, arrived, attended, M, scale, cap, learned,
    x, a0, w0, a1, w1, b0, b1, y, moments, sums, met, factor, OUT, rows, in0, in1, tiles, attending, programs,
    B: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, OCTAVE: tl.constexpr, OCTAVES: tl.constexpr, UNITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, CAPPED: tl.constexpr, LEARNED: tl.constexpr, STAGES: tl.constexpr,
    ADDS: tl.constexpr, SCALED: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, BIASED0: tl.constexpr, BIASED1: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`attending` programs read blocks, `programs` of them one head; the others add products."""
    program = tl.program_id(0)
    if program < attending:
        G: tl.constexpr = H // K
        heads = attending // programs
        bk, group = program % heads % (B * K), program % heads // (B * K)
        first = tl.load(start).to(tl.int32)
        blocks = tl.cdiv(first + M, BLOCK)
        unit, begin, end = share_of(program // heads, programs, blocks, OCTAVE, OCTAVES, False)
        wait_for_previous(PDL)
        if begin < end:
            read_blocks(
                q, k, v, q_row, q_head, k_row, k_head, v_row, v_head, table, layer, first, cos, sin, partial, stats, a0, M,
                scale, cap, learned, unit, begin, end, bk, group,
                B, H, K, D, F, INTERLEAVED, QUERIES, BLOCK, OCTAVE, False, BLOCK_R, BLOCK_D, CAPPED, LEARNED, STAGES,
            )  # fmt: skip
        tl.debug_barrier()
        ticket = arrived + group * B * K + bk
        if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == programs - 1:
            tl.debug_barrier()
            units = units_seen(first, M, BLOCK, OCTAVE, OCTAVES)
            asked = tl.minimum(M - group * QUERIES, QUERIES) * G
            for r in tl.range(0, asked, num_stages=1):
                row = (bk // K * M + group * QUERIES + r // G).to(tl.int64) * H + bk % K * G + r % G
                merge_row(partial, stats, a0, learned, row, units, B * M * H, H, LEARNED, D, UNITS, BLOCK_D)
            tl.store(ticket, 0)
            tell_attended(attended)
    else:
        program -= attending
        add_products(
            x, a0, w0, a1, w1, b0, b1, y, moments, sums, met, factor, OUT, rows, in0, in1,
            program % tiles, tiles, program // tiles % SPLITS, program // tiles // SPLITS, attended, attending // programs,
            ADDS, SCALED, SPLITS, PARTS, BIASED0, BIASED1, EVEN, BLOCK_O, BLOCK_I, ROWS, AHEAD, True, PDL,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beside:
    """`cache.AttentionKernels` whose attention gives the stream with what it and the MLP add: one launch where that pays.

    `x`: the stream. `out`: of attention. `fed_NI`, `down`: of the MLP. `attended`: this layer's counter.
    """

    x: Residual
    out: Linear
    fed_NI: torch.Tensor
    down: Linear
    attended: torch.Tensor

    def attend_ring(
        self, q_BMHD: torch.Tensor, k_BMKD: torch.Tensor, v_BMKD: torch.Tensor, cache: RingCache, layer: int,
        start: torch.Tensor, angles: Angles, how: Attention,
    ) -> Residual:  # fmt: skip
        B, M, H, D = q_BMHD.shape
        K, ring, F = k_BMKD.shape[2], cache.ring, angles.cos_MF.shape[1]
        rows = query_rows(H // K)
        queries = rows // (H // K)
        spans = ceil_div(ring.sinks + ring.slots, SPAN)
        a_NI, cut = self._products(q_BMHD)
        programs = min(spans, programs_beside(cut, B * K, a_NI.device))
        if programs < 1 or ring.slots > MOST_SLOTS:
            return self._apart(attend_ring, q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how)
        heads = B * K * ceil_div(M, queries)
        partial = torch.empty(spans, B * M * H, D, dtype=torch.float32, device=a_NI.device)
        stats = torch.empty(spans, 2, B * M * H, dtype=torch.float32, device=a_NI.device)
        scalars, flags = kernel_arguments(how, a_NI)
        _ring_beside_products[(heads * programs + cut.programs,)](
            q_BMHD, k_BMKD, v_BMKD, *strides(q_BMHD), *strides(k_BMKD), *strides(v_BMKD),
            cache.k_LBKCD[layer], cache.v_LBKCD[layer], start,
            angles.cos_MF, angles.sin_MF, angles.far_cos_MF, angles.far_sin_MF, partial, stats, cache.arrived, self.attended,
            M, *scalars, *cut.arguments, cut.tiles, heads * programs, programs,
            B, H, K, D, F, how.interleaved, ring.sinks, ring.slots, ring.sliding_window, spans, queries,
            SPAN, rows, max(16, power_of_two(D)), *flags, *cut.constants, **_options(),
        )  # fmt: skip
        return cut.out

    def attend_blocks(
        self, q_BMHD: torch.Tensor, k_BMKD: torch.Tensor, v_BMKD: torch.Tensor, cache: FullCache, layer: int,
        start: torch.Tensor, angles: Angles, how: Attention,
    ) -> Residual:  # fmt: skip
        B, M, H, D = q_BMHD.shape
        K, F = k_BMKD.shape[2], angles.cos_MF.shape[1]
        rows = query_rows(H // K)
        queries = rows // (H // K)
        a_NI, cut = self._products(q_BMHD)
        programs = programs_beside(cut, B * K, a_NI.device)
        if programs < 1 or cache.most_tokens > MOST_TOKENS:
            return self._apart(attend_blocks, q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how)
        heads = B * K * ceil_div(M, queries)
        units = units_of(ceil_div(cache.most_tokens, BLOCK))
        partial = torch.empty(units, B * M * H, D, dtype=torch.float32, device=a_NI.device)
        stats = torch.empty(units, 2, B * M * H, dtype=torch.float32, device=a_NI.device)
        scalars, flags = kernel_arguments(how, a_NI)
        _blocks_beside_products[(heads * programs + cut.programs,)](
            q_BMHD, k_BMKD, v_BMKD, *strides(q_BMHD), *strides(k_BMKD), *strides(v_BMKD), cache.table, layer, start,
            angles.cos_MF, angles.sin_MF, partial, stats, tickets(heads, a_NI.device, "heads"), self.attended,
            M, *scalars, *cut.arguments, cut.tiles, heads * programs, programs,
            B, H, K, D, F, how.interleaved, queries, BLOCK, OCTAVE, OCTAVES, UNITS, rows, max(16, power_of_two(D)), *flags, 2,
            *cut.constants, **_options(),
        )  # fmt: skip
        return cut.out

    def attend_packed(self, *operands: object) -> Residual:
        return self._apart(attend_packed, *operands)

    def attend_latent_ring(self, *operands: object) -> Residual:
        return self._apart(attend_latent_ring, *operands)

    def attend_latent_blocks(self, *operands: object) -> Residual:
        return self._apart(attend_latent_blocks, *operands)

    def _products(self, q_BMHD: torch.Tensor) -> tuple[torch.Tensor, Products]:
        """Room for what is attended, and the products of it."""
        B, M, H, D = q_BMHD.shape
        a_NI = q_BMHD.new_empty(B * M, H * D)
        return a_NI, products_of(self.x, ((a_NI, self.out), (self.fed_NI, self.down)), 1.0, TILE)

    def _apart(self, attend: Callable[..., torch.Tensor], *operands: object) -> Residual:
        """In a launch each."""
        a_NI = attend(*operands).view(len(self.fed_NI), -1)
        return down_proj(self.x, ((a_NI, self.out), (self.fed_NI, self.down)))


def beside(x: Residual, out: Linear, fed_NI: torch.Tensor, down: Linear, layer: int, layers: int) -> Beside:
    """Of one layer of `layers`."""
    counters = attended_counters(layers, fed_NI.device)
    return Beside(x, out, fed_NI, down, counters[layer : layer + 1])


def _options() -> dict[str, int | bool]:
    return {
        "num_warps": TILE.warps,
        "num_stages": STAGES,
        "maxnreg": REGISTERS,
        **launch_options(),
    }


def programs_beside(cut: Products, heads: int, device: torch.device) -> int:
    """Programs for each head, so that all run together with those of the products of one tile of rows."""
    return (AT_ONCE * multiprocessors(device) - cut.tiles * cut.splits) // heads
