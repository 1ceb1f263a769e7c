"""Where cudaMalloc puts a segment: of two free blocks of one size, the allocator takes the one at the lower address.

Found with torch 2.11 and driver 580 on Linux, as the only rules that agree with recorded runs event by event, and address
by address as far as no host memory comes between:

- The driver maps multiples of 32 MiB, each at the top of the highest gap of addresses that is larger than it (larger, as
  the kernel knows no such alignment and the driver asks for more and trims).
- A segment goes into the newest mapping that has room for it, there to the lowest free place.
- A mapping that is wholly free is given back.
- The context's own mappings are the oldest ones, and have room. The driver puts kernels that load later where it puts
  segments.

Host memory takes addresses from the same gaps: a process that maps some while it runs, such as a record of these events,
may differ.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

_MAPPING = 32 * 2**20
#: The context's mapping ends here.
_TOP = 2**45

Range = tuple[int, int]


class ContextRoom(NamedTuple):
    """What a context leaves free of its own mappings once a cell is set up, in bytes: at the lowest address, then what is in
    use, then at the end.
    """

    begin: int
    used: int
    end: int


#: NVIDIA H100 80GB and H200, driver 580.159, torch 2.11: addresses of the first segments of 24 recorded runs.
CONTEXT_ROOM = ContextRoom(336 * 2**20, 74 * 2**20, 22 * 2**20)


class AddressSpace:
    """The addresses of one process's segments. `room`: of its context."""

    def __init__(self, room: ContextRoom = CONTEXT_ROOM) -> None:
        context = _TOP - sum(room)
        self._gaps: list[Range] = [(0, context)]  # ascending
        self._ends: dict[int, int] = {context: _TOP}  # mapping -> its end
        free = [(context, context + room.begin), (_TOP - room.end, _TOP)]
        self._free: dict[int, list[Range]] = {context: [place for place in free if place[0] < place[1]]}
        self._made = {context: 0}  # mapping -> its number
        self._roomy = [(0, context)] if self._free[context] else []  # mappings with room, the oldest first
        self._count = 1
        self._mapping_of: dict[int, int] = {}  # segment -> mapping

    def copy(self) -> "AddressSpace":
        other = AddressSpace()
        other._gaps, other._ends = list(self._gaps), dict(self._ends)
        other._free = {mapping: list(ranges) for mapping, ranges in self._free.items()}
        other._made, other._roomy, other._count = dict(self._made), list(self._roomy), self._count
        other._mapping_of = dict(self._mapping_of)
        return other

    def take(self, size: int) -> int:
        """The address of a new segment of `size` bytes."""
        for _, mapping in reversed(self._roomy):
            for index, (begin, end) in enumerate(self._free[mapping]):
                if end - begin >= size:
                    return self._placed(mapping, index, size)
        return self._placed(self._map(size), 0, size)

    def give(self, address: int, size: int) -> None:
        """A segment goes back to the device."""
        mapping = self._mapping_of.pop(address)
        if not self._free[mapping]:
            insort(self._roomy, (self._made[mapping], mapping))
        ranges = _with(self._free[mapping], address, address + size)
        self._free[mapping] = ranges
        if ranges == [(mapping, self._ends[mapping])]:
            self._full(mapping)
            del self._free[mapping], self._made[mapping]
            self._gaps = _with(self._gaps, mapping, self._ends.pop(mapping))

    def _placed(self, mapping: int, index: int, size: int) -> int:
        ranges = self._free[mapping]
        begin, end = ranges[index]
        ranges[index : index + 1] = [(begin + size, end)] if begin + size < end else []
        if not ranges:
            self._full(mapping)
        self._mapping_of[begin] = mapping
        return begin

    def _full(self, mapping: int) -> None:
        del self._roomy[bisect_left(self._roomy, (self._made[mapping], mapping))]

    def _map(self, size: int) -> int:
        length = -(-size // _MAPPING) * _MAPPING
        gap = next(gap for gap in reversed(self._gaps) if gap[1] - gap[0] > length)
        begin = gap[1] - length
        self._gaps[self._gaps.index(gap)] = gap[0], begin
        self._ends[begin] = begin + length
        self._free[begin] = [(begin, begin + length)]
        self._made[begin] = self._count
        self._roomy.append((self._count, begin))
        self._count += 1
        return begin


def _with(ranges: list[Range], begin: int, end: int) -> list[Range]:
    """`ranges`, in order, with one more that merges with its neighbours."""
    kept = []
    for start, stop in ranges:
        if stop == begin:
            begin = start
        elif start == end:
            end = stop
        else:
            kept.append((start, stop))
    insort(kept, (begin, end))
    return kept
