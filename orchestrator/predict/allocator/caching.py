"""torch's CUDA caching allocator as a pure model: the same requests in the same order reserve the same bytes.

The rules are those of c10/cuda/CUDACachingAllocator.cpp in torch 2.11 to 2.13, for one stream and no graph capture:

- Sizes are rounded up to 512 bytes. Up to 1 MiB they come from the small pool, larger ones from the large pool.
- A request takes the smallest free block that holds it; among equals the one at the lowest address.
- Where none does, a segment is taken from the device: 2 MiB in the small pool; 20 MiB for less than 10 MiB; else the
  request rounded up to 2 MiB. A block is split where more than 1 MiB would be left (512 bytes in the small pool).
- A freed block merges with its free neighbours in the segment. Segments are kept.
- Where the device has no more, every wholly free segment is given back, and the request is tried once more.
- With `expandable_segments` each pool is one address range that grows by pages of 2 MiB or 20 MiB; blocks are split
  where 512 bytes are left; free pages are given back one by one.

Which of two equally large free blocks is lower is `address_space`'s to say.
"""

import copy
from bisect import bisect_left, insort
from collections.abc import Iterable

from orchestrator.predict.allocator.address_space import AddressSpace
from orchestrator.predict.allocator.blocks import ADDRESSES, Block, Pool, copied
from orchestrator.predict.allocator.settings import AllocatorSettings, MiB
from orchestrator.predict.allocator.varying import Varying, bounds_before

_UNIT = 512
_SMALL = MiB
_SMALL_SEGMENT = 2 * MiB
_LARGE_FROM = 10 * MiB
_LARGE_UNIT = 2 * MiB
#: Addresses set aside for one expandable segment: more than any device has, so that they never run out.
_RANGE = 2**40
#: The first expandable segment, above all others.
_RANGES = 2**45


class OutOfDeviceMemory(Exception):
    """The allocator found no room for a request, after it had given back what was free.

    `requested`: as asked for. `wanted`: the segment that it would have taken. `allocated`, `reserved`: at that moment.
    """

    def __init__(self, requested: int, wanted: int, allocated: int, reserved: int) -> None:
        super().__init__(
            f"{requested:,} bytes asked for: a segment of {wanted:,} beside {reserved:,} reserved, "
            f"{allocated:,} of them allocated"
        )
        self.requested, self.wanted = requested, wanted
        self.allocated, self.reserved = allocated, reserved


class CachingAllocator:
    """One device's allocator. `allowed_bytes`: what it may reserve (`set_per_process_memory_fraction`), None: any.

    `device_bytes`: what the device has for it beside contexts and other processes, None: at least what is allowed.
    Both may change between requests. `allocated`, `reserved`, `peak_reserved`: bytes, by block and segment. On one
    stream no freed block waits for an event, so that active bytes are the allocated ones. `demand`: the most that was
    reserved, or would have been after a request: with at least so much allowed, and on the device, the requests up to
    now do what they did (where no garbage is collected, which hangs on what is allowed).
    """

    def __init__(
        self,
        settings: AllocatorSettings = AllocatorSettings(),  # noqa: B008 frozen
        allowed_bytes: int | None = None,
        device_bytes: int | None = None,
    ) -> None:
        self.settings = settings
        self.allowed_bytes = allowed_bytes
        self.device_bytes = device_bytes
        self.allocated = 0
        self.reserved = 0
        self.peak_allocated = 0
        self.peak_reserved = 0
        self.demand = 0
        self.retries = 0
        self._expandable = settings.expandable_segments
        self._max_split = settings.max_split_bytes if settings.max_split_bytes is not None else _RANGE
        self._collects = settings.garbage_collection_threshold > 0 and allowed_bytes is not None
        self._divisions = settings.roundup_power2_divisions
        self._varying: Varying | None = None
        self._space = AddressSpace()
        self._next_range = _RANGES
        self._small = Pool(True, _SMALL_SEGMENT)
        self._large = Pool(False, settings.large_segment_bytes)

    def allocate(self, requested: int) -> Block:
        """Place a tensor of `requested` bytes, at least 1. Raises `OutOfDeviceMemory`."""
        size = self.rounded(requested) if self._divisions else (requested + 511) & -512
        pool = self._small if size <= _SMALL else self._large
        block = self._find(pool, size) or self._from_device(pool, size, requested)
        left = block.size - size
        rest = None
        if (
            (left >= _UNIT)
            if pool.is_small or self._expandable
            else (left > _SMALL and size < self._max_split)
        ):
            rest = Block(pool, block.address + size, left, block.base)
            block.size = size
            rest.previous = block
            rest.following = block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            pool.add(rest)
        if self._varying is not None and block is self._varying.rest:
            self._varying.took(left, rest, is_small=pool.is_small)
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def allocate_varying(self, requested: int) -> Block:
        """As `allocate`, of a block that `resize` may give another size later: one at a time. Raises `OutOfDeviceMemory`."""
        size = self.rounded(requested)
        pool = self._small if size <= _SMALL else self._large
        bounds = bounds_before(pool, size, self._wanted(pool, size))
        block = self.allocate(requested)
        self._varying = Varying.of(size, block, bounds)
        if self.settings != AllocatorSettings():
            self._varying.pin()  # pages and ages count
        return block

    def may_resize(self, requested: int) -> bool:
        """Whether all would have happened alike, had `allocate_varying` been asked for so many bytes."""
        return self._varying is not None and self._varying.may_be(self.rounded(requested))

    def resize(self, requested: int) -> int:
        """Let that block have been of so many bytes, where it may. Returns how many more are allocated."""
        change = 0 if self._varying is None else self._varying.resize(self.rounded(requested))
        self.allocated += change
        self.peak_allocated += change
        return change

    def free(self, block: Block) -> None:
        """Return a block to its pool; its free neighbours become part of it."""
        if self._varying is not None and block is self._varying.block:
            self._varying = None
        self.allocated -= block.size
        previous, following = block.previous, block.following
        if previous is not None and previous.is_free:
            self._absorb(block, previous)
        if following is not None and following.is_free:
            self._absorb(block, following)
        block.pool.add(block)

    def load_kernels(self, size: int) -> None:
        """The driver loads kernels of `size` bytes: none of them is the allocator's, but they lie where segments would."""
        self._space.take(size)

    def reset_peaks(self) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def empty_cache(self) -> None:
        """Give every wholly free segment, or page of an expandable one, back to the device."""
        for pool in (self._large, self._small):
            for block in pool.free():
                if block.base is not None:
                    self._unmap(block)
                elif not block.is_split:
                    self._release(block)

    def copy(self, held: Iterable[Block]) -> tuple["CachingAllocator", dict[Block, Block]]:
        """Another allocator in the same state, and the copy of each block that can still be freed: `held` are those."""
        other = copy.copy(self)
        other._space = self._space.copy()
        other._small, other._large = (Pool(pool.is_small, pool.page) for pool in (self._small, self._large))
        pools = {self._small: other._small, self._large: other._large}
        known = [block for pool in pools for block in (*pool.blocks.values(), *pool.unmapped)]
        copies = copied([*held, *known], pools)
        other._varying = self._varying and self._varying.copy(copies)
        return other, copies

    def rounded(self, requested: int) -> int:
        """Bytes that a request of `requested` bytes counts as."""
        if requested < _UNIT:
            return _UNIT
        if self._divisions:
            power = requested.bit_length() - 1
            divisions = self._divisions[min(max(power - 20, 0), len(self._divisions) - 1)]
            if divisions > 1 and requested > _UNIT * divisions:
                step = (1 << power) // divisions
                return -(-requested // step) * step
        return (requested + _UNIT - 1) & -_UNIT

    def _find(self, pool: Pool, size: int) -> Block | None:
        """The best free block, taken out of its pool."""
        if self._collects:
            pool.searches += 1
        keys = pool.keys
        index = bisect_left(keys, size * ADDRESSES)
        if self._varying is not None:
            self._varying.searched(pool, size, index)
        if index == len(keys):
            return None
        if self._expandable:
            # The last block before unmapped pages counts as large as it can become.
            blocks = pool.blocks
            while index + 1 < len(keys) and blocks[keys[index + 1]].room < blocks[keys[index]].room:
                index += 1
        if self._max_split != _RANGE:
            found = keys[index] // ADDRESSES
            if size < self._max_split <= found:
                return None
            if size >= self._max_split and found >= size + self.settings.max_non_split_rounding_bytes:
                return None
        return pool.take(index)

    def _from_device(self, pool: Pool, size: int, requested: int) -> Block:
        """A new segment, or a piece of an expandable one, in three attempts."""
        if self._collects:
            self._collect_garbage()
        wanted = self._wanted(pool, size)
        block = self._new(pool, size, wanted)
        if block is None and self._release_oversize(pool, size):
            block = self._new(pool, size, wanted)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._new(pool, size, wanted)
        if block is None:
            raise OutOfDeviceMemory(requested, wanted, self.allocated, self.reserved)
        return block

    def _wanted(self, pool: Pool, size: int) -> int:
        """Bytes of the segment that a request takes from the device."""
        if pool.is_small:
            return _SMALL_SEGMENT
        up = -(-size // _LARGE_UNIT) * _LARGE_UNIT
        return self.settings.large_segment_bytes if size < _LARGE_FROM else up

    def _new(self, pool: Pool, size: int, wanted: int) -> Block | None:
        # The check is the same for expandable segments, which may need less, or a page more.
        self.demand = max(self.demand, self.reserved + wanted)
        if self.allowed_bytes is not None and self.reserved + wanted > self.allowed_bytes:
            return None
        if self._expandable:
            return self._expand(pool, size)
        if not self._reserve(wanted):
            return None
        return Block(pool, self._space.take(wanted), wanted, None)

    def _reserve(self, size: int) -> bool:
        if self.device_bytes is not None and self.reserved + size > self.device_bytes:
            return False
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
            self.demand = max(self.demand, self.reserved)
        return True

    def _release(self, block: Block) -> None:
        block.pool.remove(block)
        self._space.give(block.address, block.size)
        self.reserved -= block.size

    def _absorb(self, block: Block, neighbour: Block) -> None:
        """`neighbour`, free and mapped like `block` or unmapped like it, becomes part of it."""
        if neighbour.is_mapped:
            neighbour.pool.remove(neighbour)
        else:
            neighbour.pool.unmapped.remove(neighbour)
        if neighbour is block.previous:
            block.address = neighbour.address
            block.previous = neighbour.previous
            if block.previous is not None:
                block.previous.following = block
        else:
            block.following = neighbour.following
            if block.following is not None:
                block.following.previous = block
        block.size += neighbour.size
        if self._varying is not None and neighbour is self._varying.rest:
            self._varying.rest = block

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """With `max_split_size_mb`: free blocks too large to split, only enough for `size`."""
        if self._max_split == _RANGE:
            return False
        target = max(size, self._max_split)
        index = bisect_left(pool.keys, target * ADDRESSES)
        if index < len(pool.keys) and not self._expandable:
            self._release(pool.blocks[pool.keys[index]])
            return True
        released = 0
        for block in reversed(pool.free()[:index]):
            if released >= target or block.size < self._max_split:
                break
            if block.base is None:
                released += block.size
                self._release(block)
        return released >= target

    def _collect_garbage(self) -> None:
        """Free unused large segments, those first that were passed over longer than the mean."""
        assert self.allowed_bytes is not None
        threshold = int(self.settings.garbage_collection_threshold * self.allowed_bytes)
        target = self.reserved - threshold
        unused = [block for block in self._large.free() if not block.is_split]
        searches = self._large.searches
        age = sum(searches - block.since for block in unused)
        while target > 0 and unused:
            mean = age / len(unused)
            old = [block for block in unused if block.base is None and searches - block.since >= mean]
            if not old:
                return
            for block in old:
                target -= block.size
                age -= searches - block.since
                self._release(block)
            unused = [block for block in unused if block not in old]

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """Map pages behind a free block, or at the lowest unmapped address with `size` bytes of room."""
        block: Block | None = self._growable(pool, size)
        assert block is not None
        if not block.is_mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            unmapped = block.following
            assert unmapped is not None
            if not self._map(unmapped, min(size - block.size, unmapped.size)):
                return None
            block = unmapped  # it has absorbed the block before it
        pool.remove(block)
        return block

    def _growable(self, pool: Pool, size: int) -> Block:
        for block in pool.unmapped:
            start = block
            if start.previous is not None and start.previous.is_free:
                start = start.previous
            room, piece = 0, start
            while room < size and piece is not None and (piece.is_free or not piece.is_mapped):
                room += piece.size
                piece = piece.following  # type: ignore[assignment]
            if room >= size:
                return start
        segment = Block(pool, self._next_range, _RANGE // pool.page * pool.page, self._next_range)
        segment.is_mapped = False
        self._next_range += _RANGE
        pool.unmapped.append(segment)
        return segment

    def _map(self, block: Block, size: int) -> bool:
        """Back the first `size` bytes of an unmapped block with pages; it becomes a free block."""
        pool = block.pool
        mapped = -(-size // pool.page) * pool.page
        if not self._reserve(mapped):
            return False
        index = pool.unmapped.index(block)
        if mapped < block.size:
            rest = Block(pool, block.address + mapped, block.size - mapped, block.base)
            rest.is_mapped = False
            rest.previous, rest.following = block, block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            block.size = mapped
            pool.unmapped[index] = rest
        else:
            del pool.unmapped[index]
        block.is_mapped = True
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.is_free:
                self._absorb(block, neighbour)
        pool.add(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly within a free block."""
        pool, page = block.pool, block.pool.page
        assert block.base is not None
        begin = -(-(block.address - block.base) // page) * page + block.base
        end = (block.address + block.size - block.base) // page * page + block.base
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            before = Block(pool, block.address, begin - block.address, block.base)
            before.previous, before.following = block.previous, block
            if before.previous is not None:
                before.previous.following = before
            block.previous = before
            pool.add(before)
        if end < block.address + block.size:
            after = Block(pool, end, block.address + block.size - end, block.base)
            after.previous, after.following = block, block.following
            if after.following is not None:
                after.following.previous = after
            block.following = after
            pool.add(after)
        block.address, block.size, block.is_mapped = begin, end - begin, False
        self.reserved -= block.size
        for neighbour in (block.previous, block.following):
            if neighbour is not None and not neighbour.is_mapped:
                self._absorb(block, neighbour)
        if block.is_split:
            insort(pool.unmapped, block, key=lambda unmapped: unmapped.address)
