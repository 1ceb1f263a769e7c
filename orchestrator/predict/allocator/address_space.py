"""Where cudaMalloc puts a segment: of two free blocks of one size, the allocator takes the one at the lower address.

Found with torch 2.11 and driver 580 on Linux, as the only rule among some hundred that agrees with recorded runs event
by event: the driver maps multiples of 32 MiB, each at the top of the highest gap of addresses that is larger than it
(larger, as the kernel knows no such alignment and the driver asks for more and trims); a segment goes to the lowest
free place in what is mapped; a mapping that is wholly free is given back. Host memory takes addresses from the same
gaps, so that a process with large host allocations of its own may differ.
"""

from bisect import insort

_MAPPING = 32 * 2**20
#: The first mapping ends here.
_TOP = 2**45

Range = tuple[int, int]


class AddressSpace:
    """The addresses of one process's segments."""

    def __init__(self) -> None:
        self._gaps: list[Range] = [(0, _TOP)]  # ascending
        self._ends: dict[int, int] = {}  # mapping -> its end
        self._free: dict[int, list[Range]] = {}  # mappings with room -> where
        self._mapping_of: dict[int, int] = {}  # segment -> mapping

    def copy(self) -> "AddressSpace":
        other = AddressSpace()
        other._gaps, other._ends = list(self._gaps), dict(self._ends)
        other._free = {mapping: list(ranges) for mapping, ranges in self._free.items()}
        other._mapping_of = dict(self._mapping_of)
        return other

    def take(self, size: int) -> int:
        """The address of a new segment of `size` bytes."""
        places = [
            (begin, mapping)
            for mapping, ranges in self._free.items()
            for begin, end in ranges
            if end - begin >= size
        ]
        begin, mapping = min(places) if places else (self._map(size),) * 2
        ranges = self._free.pop(mapping)
        at = next(index for index, (start, _) in enumerate(ranges) if start == begin)
        end = ranges[at][1]
        ranges[at : at + 1] = [(begin + size, end)] if begin + size < end else []
        if ranges:
            self._free[mapping] = ranges
        self._mapping_of[begin] = mapping
        return begin

    def give(self, address: int, size: int) -> None:
        """A segment goes back to the device."""
        mapping = self._mapping_of.pop(address)
        ranges = _with(self._free.get(mapping, []), address, address + size)
        if ranges == [(mapping, self._ends[mapping])]:
            self._free.pop(mapping, None)
            self._gaps = _with(self._gaps, mapping, self._ends.pop(mapping))
        else:
            self._free[mapping] = ranges

    def _map(self, size: int) -> int:
        length = -(-size // _MAPPING) * _MAPPING
        gap = next(gap for gap in reversed(self._gaps) if gap[1] - gap[0] > length)
        begin = gap[1] - length
        self._gaps[self._gaps.index(gap)] = gap[0], begin
        self._ends[begin] = begin + length
        self._free[begin] = [(begin, begin + length)]
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
