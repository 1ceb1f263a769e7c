"""Pieces of segments, and the free ones in the order in which the allocator searches them."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping

#: A free block's place in its pool: size, then address. Addresses stay below this.
ADDRESSES = 2**46


class Block:
    """A piece of a segment; `allocate` returns one, `free` takes it back. `size`: bytes, rounding included."""

    __slots__ = ("address", "base", "following", "is_free", "is_mapped", "pool", "previous", "since", "size")

    def __init__(self, pool: "Pool", address: int, size: int, base: int | None) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.base = base  # where its expandable segment begins
        self.previous: Block | None = None
        self.following: Block | None = None
        self.is_free = False  # mapped, and in its pool
        self.is_mapped = True
        self.since = 0  # the pool's searches when it was freed

    @property
    def is_split(self) -> bool:
        return self.previous is not None or self.following is not None

    @property
    def room(self) -> int:
        """Bytes that it could grow to: with the unmapped pages behind it."""
        following = self.following
        return self.size + (following.size if following is not None and not following.is_mapped else 0)


class Pool:
    """Free blocks by size, unmapped ones by address."""

    __slots__ = ("blocks", "is_small", "keys", "page", "searches", "unmapped")

    def __init__(self, is_small: bool, page: int) -> None:
        self.is_small = is_small
        self.page = page
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []
        self.searches = 0

    def add(self, block: Block) -> None:
        block.is_free = True
        block.since = self.searches
        key = block.size * ADDRESSES + block.address
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        key = block.size * ADDRESSES + block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]
        block.is_free = False

    def take(self, index: int) -> Block:
        block = self.blocks.pop(self.keys.pop(index))
        block.is_free = False
        return block

    def free(self) -> list[Block]:
        """By size, then address."""
        return [self.blocks[key] for key in self.keys]


def copied(blocks: Iterable[Block], pools: Mapping[Pool, Pool]) -> dict[Block, Block]:
    """Of each of `blocks`, and of all that share segments with them, a copy in the copy of its pool, linked alike."""
    copies: dict[Block, Block] = {}
    waiting = list(blocks)
    while waiting:
        block = waiting.pop()
        if block in copies:
            continue
        other = Block(pools[block.pool], block.address, block.size, block.base)
        other.is_free, other.is_mapped, other.since = block.is_free, block.is_mapped, block.since
        copies[block] = other
        waiting += [near for near in (block.previous, block.following) if near is not None]
    for block, other in copies.items():
        other.previous = None if block.previous is None else copies[block.previous]
        other.following = None if block.following is None else copies[block.following]
    for pool, copy in pools.items():
        copy.keys = list(pool.keys)
        copy.blocks = {key: copies[block] for key, block in pool.blocks.items()}
        copy.unmapped = [copies[block] for block in pool.unmapped]
        copy.searches = pool.searches
    return copies
