"""One pass of an engine as a trace: what it allocates, what it frees, what it leaves to the next. Free of torch."""

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

#: What outlives a pass, by name: "cache 12" (its place in the cache), or the operation that made it, counted.
Label = str

#: A size between two rehearsed ones is interpolated where the middle one is within this of the straight line.
_TOLERANCE_BYTES, _TOLERANCE = 64 * 2**10, 0.002
#: Rehearsals of one family, beyond which its sizes follow no law worth the time.
_MOST_SAMPLES = 60


#: A new piece is at first so many times as long as all before it.
_LONGER = 15


class NotRehearsable(Exception):
    """The engine cannot be run without computing: Python reads values, or a config is not complete. One line."""


class ModeRefused(NotRehearsable):
    """The engine refuses the cell's mode for this architecture, in a run too. One line: its reason."""


@dataclass(frozen=True, slots=True)
class PassTrace:
    """`events` in order: e >= 0 allocates `sizes[e]` bytes; ~(2 * e) frees that again; ~(2 * i + 1) frees `frees[i]`.

    `frees`: what earlier passes left and this one frees. `leaves`: (allocation, label) of what outlives it. `renames`:
    earlier labels that this pass gives another name.
    """

    sizes: tuple[int, ...]
    events: tuple[int, ...]
    frees: tuple[Label, ...]
    leaves: tuple[tuple[int, Label], ...]
    renames: tuple[tuple[Label, Label], ...] = ()

    def is_like(self, other: "PassTrace") -> bool:
        """Whether they differ in sizes at most."""
        return replace(self, sizes=()) == replace(other, sizes=())


@dataclass(frozen=True, slots=True)
class Generation:
    """`start`: from the call of the generation to the end of its first pass; `first`: the pass after that; `steady`: the
    next, and every later one but for its sizes.
    """

    start: PassTrace
    first: PassTrace
    steady: PassTrace


class Piece(NamedTuple):
    """Lengths over which every size of a pass is a straight line: from the pass at `begin` to that at `end`."""

    begin: int
    end: int
    first: PassTrace
    last: PassTrace

    def sizes(self, position: int) -> list[int]:
        """Of the pass at `position`, between `begin` and `end`."""
        if not self.first.is_like(self.last):  # neighbours in the grid: nothing was rehearsed between them
            return list(self.first.sizes)
        length, at = self.end - self.begin, position - self.begin
        return [a + (b - a) * at // length for a, b in zip(self.first.sizes, self.last.sizes, strict=True)]


class PassFamily:
    """The passes of one kind at any position, from a few that were rehearsed: sizes are piecewise straight lines.

    `rehearse(position)` may raise `NotRehearsable`; it is called for `first` and multiples of `unit` from there.
    """

    def __init__(self, rehearse: Callable[[int], PassTrace], first: int, unit: int) -> None:
        self._rehearse = rehearse
        self._first = first
        self._unit = unit
        self._samples: dict[int, PassTrace] = {}
        self._ends = [first]
        self._straight: set[int] = (
            set()
        )  # where a piece begins over which sizes are known to be straight lines

    def at(self, position: int) -> PassTrace:
        """The pass at `position`, not before the family's first. Raises `NotRehearsable`."""
        if position in self._samples:
            return self._samples[position]
        piece = self.piece(position)
        if not piece.first.is_like(piece.last):
            return self._sample(position)
        return replace(piece.first, sizes=tuple(piece.sizes(position)))

    def piece(self, position: int) -> Piece:
        """The piece that holds `position`. Raises `NotRehearsable`."""
        while position >= self._ends[-1]:
            begin = self._ends[-1]
            self._ends.append(begin + max(1, (begin - self._first) // self._unit * _LONGER) * self._unit)
        while True:
            index = bisect_right(self._ends, position)
            begin, end = self._ends[index - 1], self._ends[index]
            middle = begin + (end - begin) // self._unit // 2 * self._unit
            if begin in self._straight or middle == begin:
                break
            ends = self._sample(begin), self._sample(end)
            if _is_between(ends[0], self._sample(middle), ends[1], begin, middle, end):
                self._straight.add(begin)
                break
            insort(self._ends, middle)  # only the half that was asked for is looked into
        return Piece(begin, end, self._sample(begin), self._sample(end))

    def _sample(self, position: int) -> PassTrace:
        if position not in self._samples:
            if len(self._samples) >= _MOST_SAMPLES:
                raise NotRehearsable(f"its passes follow no law: {_MOST_SAMPLES} lengths were tried")
            self._samples[position] = self._rehearse(position)
        return self._samples[position]


def _is_between(first: PassTrace, middle: PassTrace, last: PassTrace, begin: int, at: int, end: int) -> bool:
    if not first.is_like(middle) or not first.is_like(last):
        return False
    expected = Piece(begin, end, first, last).sizes(at)
    return all(
        abs(size - wanted) <= max(_TOLERANCE_BYTES, _TOLERANCE * size)
        for size, wanted in zip(middle.sizes, expected, strict=True)
    )
