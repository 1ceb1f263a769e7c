"""The residual stream with what all processes together add to it."""

import torch

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.residual import (
    WIDTH,
    Residual,
    store_moments_of_row,
    store_moments_of_tiles,
)
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.peers import Peers
from workers.engines.graph.symmetric import PROGRAMS, SymmetricBuffer

#: Tiles of a row, `WIDTH` numbers each, that one program sums.
TILES = 8


def add_shards_plain(x: Residual | None, y: Residual, peers: Peers) -> Residual:
    """x and the sum of all processes' y. `x` None: the sum alone. `y` is written over."""
    total_NE = peers.sum(y.x_NE)
    return Residual(total_NE if x is None else x.x_NE + total_NE)


@jit
def _add(
    x, y, out, moments,
    E: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    e_TI = tl.arange(0, BLOCK_T)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    wait_for_previous(PDL)
    x_TI = tl.load(x + row * E + e_TI, mask=e_TI < E, other=0.0)
    y_TI = tl.load(y + row * E + e_TI, mask=e_TI < E, other=0.0)
    sum_TI = (x_TI.to(tl.float32) + y_TI.to(tl.float32)).to(x_TI.dtype)
    tl.store(out + row * E + e_TI, sum_TI, mask=e_TI < E)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    store_moments_of_row(sum_TI, e_TI, moments + row * (2 * T), E, WIDTH, BLOCK_T)


@jit
def _meet(pads, bases, turn, program, index, COUNT: tl.constexpr):
    """Tell this program's counterparts in all processes that it has come, then wait for them."""
    for peer in tl.static_range(COUNT):
        theirs = tl.load(bases + peer).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(theirs + program * COUNT + index, turn, sem="release", scope="sys")
    for peer in tl.static_range(COUNT):
        place = pads + program * COUNT + peer
        seen = tl.atomic_add(place, 0, sem="acquire", scope="sys")
        while seen < turn:
            seen = tl.atomic_add(place, 0, sem="acquire", scope="sys")


@jit
def _add_near(
    x, y, out, moments, bases, turns, index,
    E: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, SLOT: tl.constexpr, ADDS: tl.constexpr,
    WIDTH: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: some tiles of one row. What it has of them, the others read from its slot; all sum in one order."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    program = tl.program_id(0) * tl.num_programs(1) + chunk
    here_TI = tl.arange(0, TILES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tile_T = chunk * TILES + tl.arange(0, TILES)
    e_TI = chunk * TILES * WIDTH + here_TI
    own = tl.load(bases + index)
    wait_for_previous(PDL)
    turn = tl.load(turns + program) + 1
    kind = tl.pointer_type(y.dtype.element_ty)
    place = PAD + (turn % 2) * SLOT
    y_TI = tl.load(y + row * E + e_TI, mask=e_TI < E, other=0.0)
    at_TI = program * TILES * WIDTH + here_TI
    tl.store(tl.multiple_of((own + place).to(kind), 16) + at_TI, y_TI)
    sum_TI = tl.zeros(y_TI.shape, tl.float32)
    if ADDS:
        sum_TI += tl.load(x + row * E + e_TI, mask=e_TI < E, other=0.0).to(tl.float32)
    tl.debug_barrier()
    _meet(own.to(tl.pointer_type(tl.int32)), bases, turn, program, index, COUNT)
    tl.debug_barrier()
    for peer in tl.static_range(COUNT):
        part = tl.multiple_of((tl.load(bases + peer) + place).to(kind), 16)
        sum_TI += tl.load(part + at_TI, volatile=True).to(tl.float32)
    rounded_TI = tl.where(e_TI < E, sum_TI, 0.0).to(y.dtype.element_ty)
    tl.store(out + row * E + e_TI, rounded_TI, mask=e_TI < E)
    T: tl.constexpr = (E + WIDTH - 1) // WIDTH
    store_moments_of_tiles(rounded_TI, e_TI, tile_T, moments + row * (2 * T), E, WIDTH)
    tl.store(turns + program, turn)


def add_shards(x: Residual | None, y: Residual, peers: Peers) -> Residual:
    """`add_shards_plain`, with the moments of the new stream: in one launch, where the sum is small and the cards reach
    each other's memory."""
    N, E = y.x_NE.shape
    near, chunks = peers.near, ceil_div(E, TILES * WIDTH)
    if near is not None and fits(near, N * chunks, y.x_NE.element_size()):
        return add_near(x, y, near)
    total = Residual(peers.sum(y.x_NE))
    if x is None:
        return total
    out_NE, tiles = torch.empty_like(x.x_NE), ceil_div(E, WIDTH)
    moments_N2T = torch.empty(N, 2, tiles, dtype=torch.float32, device=out_NE.device)
    _add[(N,)](
        x.x_NE,
        total.x_NE,
        out_NE,
        moments_N2T,
        E,
        WIDTH,
        power_of_two(tiles),
        num_warps=8,
        **launch_options(),
    )
    return Residual(out_NE, moments_N2T)


def fits(near: SymmetricBuffer, programs: int, width: int) -> bool:
    """Whether the sum of so many programs has room. `width`: bytes of a number."""
    return programs <= PROGRAMS and programs * TILES * WIDTH * width <= near.most_bytes


def add_near(x: Residual | None, y: Residual, near: SymmetricBuffer) -> Residual:
    N, E = y.x_NE.shape
    out_NE = torch.empty_like(y.x_NE)
    moments_N2T = torch.empty(N, 2, ceil_div(E, WIDTH), dtype=torch.float32, device=out_NE.device)
    _add_near[(N, ceil_div(E, TILES * WIDTH))](
        out_NE if x is None else x.x_NE, y.x_NE, out_NE, moments_N2T, near.bases_P, near.turns, near.index,
        E, near.count, near.pad_bytes, near.most_bytes, x is not None, WIDTH, TILES, num_warps=4, **launch_options(),
    )  # fmt: skip
    return Residual(out_NE, moments_N2T)
