"""One block whose size may be another: between which sizes all that happened since would have happened alike."""

from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.predict.allocator.blocks import ADDRESSES, Block, Pool

_UNIT = 512
_MiB = 2**20
_ANY = 2**60


class Varying:
    """`block`, and the free `rest` of where it was taken from, which is as much smaller as the block is larger; None: its size
    changes nothing. `low`, `high`: bytes by which the block's size may change, multiples of 512.

    For the allocator's default settings: pieces are split off, and neither pages nor ages count.
    """

    __slots__ = ("block", "high", "low", "rest", "size")

    def __init__(self, size: int, block: Block, rest: Block | None, low: int, high: int) -> None:
        self.size, self.block, self.rest, self.low, self.high = size, block, rest, low, high

    @classmethod
    def of(cls, size: int, block: Block, bounds: "Bounds") -> "Varying":
        """`block` was just taken for `size` bytes. `bounds`: from before."""
        varying = cls(size, block, None, bounds.low, bounds.high)
        left = bounds.taken - size
        if not left:
            varying.pin()
        elif block.size == size:
            varying.took(left, block.following, is_small=block.pool.is_small)
        else:
            varying.low = max(bounds.low, left - _MiB)
        return varying

    def copy(self, copies: Mapping[Block, Block]) -> "Varying":
        rest = None if self.rest is None else copies[self.rest]
        return Varying(self.size, copies[self.block], rest, self.low, self.high)

    def pin(self) -> None:
        self.low = self.high = 0

    def may_be(self, size: int) -> bool:
        return self.low <= size - self.size <= self.high

    def searched(self, pool: Pool, size: int, index: int) -> None:
        """A request of `size` bytes takes the free block at `index` of the pool's keys, none where it is their end."""
        rest, keys = self.rest, pool.keys
        if rest is None or rest.pool is not pool or not rest.is_free:
            return
        if rest.size < size:
            self.low = max(self.low, rest.size - size + _UNIT)
        elif pool.blocks[keys[index]] is rest:
            self.high = min(self.high, rest.size - size)
            if index + 1 < len(keys):
                larger = keys[index + 1] // ADDRESSES
                self.low = max(self.low, 0 if larger == rest.size else rest.size - larger + _UNIT)
        else:
            self.high = min(self.high, max(0, rest.size - keys[index] // ADDRESSES - _UNIT))

    def took(self, left: int, remaining: Block | None, *, is_small: bool) -> None:
        """The rest was taken, `left` bytes more than asked for; `remaining` was split off."""
        if remaining is None:
            self.pin()
            return
        self.high = min(self.high, left - _UNIT if is_small else left - _MiB - _UNIT)
        self.rest = remaining

    def resize(self, size: int) -> int:
        """Let the block have been of another size. What lies between it and the rest moves. Returns how much more it takes."""
        change = size - self.size
        self.size, self.low, self.high = size, self.low - change, self.high - change
        if self.rest is None or not change:
            return 0
        self.block.size += change
        moved = self.block
        while moved is not self.rest:
            assert moved.following is not None
            moved = moved.following
            if moved.is_free:
                moved.pool.remove(moved)
                self._move(moved, change)
                moved.pool.add(moved)
            else:
                self._move(moved, change)
        return change

    def _move(self, block: Block, change: int) -> None:
        block.address += change
        if block is self.rest:
            block.size -= change


class Bounds(NamedTuple):
    """By how much a request may change that takes a block of `taken` bytes."""

    low: int
    high: int
    taken: int


def bounds_before(pool: Pool, size: int, wanted: int) -> Bounds:
    """Of a request of `size` bytes. `wanted`: bytes of the segment that it would take from the device."""
    low, high = (_UNIT - size, _MiB - size) if pool.is_small else (_MiB + _UNIT - size, _ANY)
    sizes = [key // ADDRESSES for key in pool.keys]
    larger = [free for free in sizes if free >= size]
    if smaller := [free for free in sizes if free < size]:
        low = max(low, smaller[-1] + _UNIT - size)
    if larger:
        return Bounds(low, min(high, larger[0] - size), larger[0])
    if pool.is_small:
        return Bounds(low, high, wanted)
    if size < 10 * _MiB:
        return Bounds(low, 10 * _MiB - _UNIT - size, wanted)
    return Bounds(max(low, wanted - 2 * _MiB + _UNIT - size, 10 * _MiB - size), wanted - size, wanted)
