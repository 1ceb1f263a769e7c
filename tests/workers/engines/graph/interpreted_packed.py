"""Run as a process of its own, with TRITON_INTERPRET=1: the kernels of packed caches against their twins, on a CPU. Compiled,
where there is a GPU. Prints one line per comparison; ends with an error if one is out of bounds."""

import importlib

import torch

from tests.workers.engines.graph import interpreted
from tests.workers.engines.graph.interpreted import check, operands
from tests.workers.engines.graph.tiny import build
from workers.engines.graph.families import describe
from workers.engines.graph.kernels.attend_packed import attend_packed_plain
from workers.engines.graph.kernels.attend_packed_tiles import attend_packed
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.rope import angles
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots
from workers.kv_dtype import STORED_AS, StoredAs

# Few enough programs that each has several blocks to read.
tiles = importlib.import_module("workers.engines.graph.kernels.attend_packed_tiles")
tiles.multiprocessors = lambda device: 3


def read(attend, weights: Weights, cache: PackedCache, q_k_v, start: int) -> torch.Tensor:
    at = torch.tensor(start, device=weights.device)
    cache.reserve(start + q_k_v[0].shape[1])
    turn = angles(at, q_k_v[0].shape[1], weights.ropes[0], cache.far_limit, weights.dtype)
    return attend(*q_k_v, cache, 0, at, turn, weights.layers[0].attention)


def alike(
    weights: Weights, stored: StoredAs, ring: RingSlots | None, limit: float, counts: tuple[int, ...]
) -> None:
    """Pieces that begin a block, end one, lie within one: each pass's rows, and what it leaves in the cache."""
    name = f"{stored.name} {'ring' if ring else 'blocks'} {weights.dtype}"
    caches = [PackedCache(weights, 2, 2 * sum(counts), 1, stored, ring) for _ in range(2)]
    start = 0
    for count in counts:
        if count == counts[-1]:
            for mine, other in zip(caches[0].slabs, caches[1].slabs, strict=True):
                check(f"{name} bytes", numbers(mine, stored), numbers(other, stored), 20 * limit)
                mine.copy_(other)
        q_k_v = tuple(x.to(weights.embedding_VE) for x in operands(weights, 2, count))
        found, expected = (
            read(attend, weights, cache, q_k_v, start)
            for attend, cache in zip((attend_packed, attend_packed_plain), caches, strict=True)
        )
        is_rough = stored.name == "fp8" and weights.device.type != "cuda" and count != counts[-1]
        check(f"{name} {start} {count}", found, expected, ROUGH if is_rough else limit)
        start += count
    together = tuple(x.to(weights.embedding_VE) for x in operands(weights, 2, 5))
    rows = [tuple(x[:, at : at + 1].contiguous() for x in together) for at in range(5)]
    alone = [read(attend_packed, weights, caches[0], row, start + at) for at, row in enumerate(rows)]
    both = read(attend_packed, weights, caches[0], together, start)
    # Interpreted, numpy multiplies; where heads share keys it sums a row by its place.
    exactly = weights.device.type == "cuda" or weights.heads == weights.kv_heads
    check(f"{name} rows alone", torch.cat(alone, 1), both, 0.0 if exactly else limit)


def numbers(slab: torch.Tensor, stored: StoredAs) -> torch.Tensor:
    """Bytes, of which one in a hundred may be a neighbour, where a quotient lies between two codes."""
    return slab.float() if stored.name != "fp8" else torch.ones(1)


#: Triton's interpreter loses the carry of a mantissa when it rounds to fp8.
ROUGH = 0.1

if __name__ == "__main__":
    assert interpreted
    for stored in STORED_AS.values():
        for family, ring in (("llama", None), ("neox", RingSlots(4, 100, 127))):
            weights = describe(build(family, torch.float32, layers=1).model)
            alike(weights, stored, ring, 1e-5, (64, 60, 5, 70, 3))
