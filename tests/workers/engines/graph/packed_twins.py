"""The kernels of packed caches against their twins: interpreted on a CPU (`interpreted_packed`), compiled on a GPU."""

from collections.abc import Callable

import torch

from workers.engines.graph.kernels.attend_packed import attend_packed_plain
from workers.engines.graph.kernels.attend_packed_tiles import attend_packed
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.rope import angles
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots
from workers.kv_dtype import StoredAs

#: Triton's interpreter loses the carry of a mantissa when it rounds to fp8.
ROUGH = 0.1
#: (what, found, expected, the largest relative difference)
Check = Callable[[str, torch.Tensor, torch.Tensor, float], None]


def read(attend, weights: Weights, cache: PackedCache, q_k_v, start: int) -> torch.Tensor:
    at = torch.tensor(start, device=weights.device)
    cache.reserve(start + q_k_v[0].shape[1])
    turn = angles(at, q_k_v[0].shape[1], weights.ropes[0], cache.far_limit, weights.dtype)
    return attend(*q_k_v, cache, 0, at, turn, weights.layers[0].attention)


def alike(
    check: Check,
    weights: Weights,
    stored: StoredAs,
    ring: RingSlots | None,
    limit: float,
    counts: tuple[int, ...],
) -> None:
    """Pieces that begin a block, end one, lie within one: each pass's rows, and what it leaves in the cache. The last of
    `counts` begins no block."""
    name = (
        f"{stored.name} {'ring' if ring else 'blocks'} {weights.dtype} G={weights.heads // weights.kv_heads}"
    )
    on_card = weights.device.type == "cuda"
    caches = [PackedCache(weights, 2, 2 * sum(counts), 1, stored, ring) for _ in range(2)]
    start = 0
    for index, count in enumerate(counts):
        is_last = index == len(counts) - 1
        if is_last:
            _same_bytes(check, name, caches, 0.02 if on_card else 0.0)
        q_k_v = _operands(weights, count)
        found, expected = (
            read(attend, weights, cache, q_k_v, start)
            for attend, cache in zip((attend_packed, attend_packed_plain), caches, strict=True)
        )
        is_rough = stored.name == "fp8" and not on_card and not is_last
        check(f"{name} {start} {count}", found, expected, ROUGH if is_rough else limit)
        start += count
    together = _operands(weights, 5)
    rows = [tuple(x[:, at : at + 1].contiguous() for x in together) for at in range(5)]
    alone = [read(attend_packed, weights, caches[0], row, start + at) for at, row in enumerate(rows)]
    both = read(attend_packed, weights, caches[0], together, start)
    # Interpreted, numpy multiplies; where heads share keys it sums a row by its place.
    exactly = on_card or weights.heads == weights.kv_heads
    check(f"{name} rows alone", torch.cat(alone, 1), both, 0.0 if exactly else limit)


def _same_bytes(check: Check, name: str, caches: list[PackedCache], share: float) -> None:
    """`share`: of the bytes that may differ, where a quotient lies between two codes. Afterwards they are equal."""
    for mine, other in zip(caches[0].slabs, caches[1].slabs, strict=True):
        if caches[0].stored.name != "fp8" or mine.is_cuda:
            differing = (mine != other).float().mean()
            check(f"{name} bytes", 1 + differing, torch.ones_like(differing), share)
        mine.copy_(other)


def _operands(weights: Weights, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(2, count, heads, weights.head_dim).to(weights.embedding_VE)
        for heads in (weights.heads, weights.kv_heads, weights.kv_heads)
    )
