"""The boundary search: a pure state machine over integers, without devices, clocks or randomness.

Values lie on a grid, the multiples of `resolution` (and `max_value` itself). What is known is a set of
finished probes; everything else (which value next, the bracket, whether the search is done) is computed from
that set. So a search that was interrupted goes on where it stood once its finished probes are observed again,
in any order.

How it moves: the floor first; then one run aimed beyond the prediction, whose own out-of-memory index tells
where the boundary is; a run that does not tell (a whole prompt in one pass) leaves an interval that is cut in
k + 1 parts; last, both ends of an interval no wider than the resolution are confirmed in fresh processes.
"""

import itertools
from dataclasses import dataclass, field

#: How far beyond and below the prediction the first two probes aim: the error that a prediction may have and
#: still cost no more than four probes. A run that ends at its own OOM costs the same however far it aimed.
MARGIN = 0.1
#: Resolutions by which a run's own account may miss: it counts what it held when it failed.
_NEARBY = 2


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """Run number `confirmation` (0, 1, ...) at `value`, in a fresh process."""

    value: int
    confirmation: int


@dataclass(frozen=True, slots=True)
class Bracket:
    """Memory runs out in `(last_ok, first_oom]`.

    `last_ok` None: nothing passed, down to the resolution. `first_oom` None: not found (yet); with `censored`
    the ceiling itself passed. `confirmed_ok`, `confirmed_oom`: fresh processes that agreed at exactly these
    values. `non_monotone`: values that passed above a failure, or failed below a pass, as the majority of
    their runs says.
    """

    last_ok: int | None
    first_oom: int | None
    confirmed_ok: int
    confirmed_oom: int
    censored: bool
    non_monotone: tuple[int, ...] = ()


@dataclass(slots=True)
class _Tally:
    passes: int = 0
    fails: int = 0


@dataclass(frozen=True, slots=True)
class _Observed:
    passed: bool
    reached: int | None
    fails_from: int | None


@dataclass(slots=True)
class Search:
    """`predicted`: the largest value that should pass, None when memory is constant in the value.

    `floor`: a small value that should pass, rounded down to the grid. `max_value`: the ceiling; when it
    passes the result is censored. `confirm`: runs that must agree on each side; a value gets at most 2 *
    confirm - 1 runs.
    """

    predicted: int | None
    floor: int
    resolution: int
    max_value: int
    confirm: int
    _observed: dict[Probe, _Observed] = field(default_factory=dict)
    _pending: set[Probe] = field(default_factory=set)

    def __post_init__(self) -> None:
        if min(self.floor, self.resolution, self.max_value, self.confirm) < 1:
            raise ValueError("floor, resolution, max_value and confirm are 1 or more")
        self.floor = self._grid(self.floor)

    # What came back

    def observe(
        self, probe: Probe, passed: bool, reached: int | None = None, fails_from: int | None = None
    ) -> None:
        """`reached`: a failed run's own account of the largest value it passed on its way; None when it
        cannot tell. `fails_from`: of the smallest that would have failed as it did, where it moved in strides
        (a prompt read in chunks); None: the very next.
        """
        self._pending.discard(probe)
        self._observed[probe] = _Observed(passed, reached, fails_from)

    def observe_lost(self, probe: Probe) -> None:
        """The probe ended without an answer about memory (node lost, hang, cancelled): it may be handed out
        again.
        """
        self._pending.discard(probe)

    # What is known

    @property
    def probes(self) -> int:
        """Runs finished so far."""
        return len(self._observed)

    @property
    def pending(self) -> frozenset[Probe]:
        return frozenset(self._pending)

    @property
    def done(self) -> bool:
        low, high = self._ends()
        return self._tight(low, high) and not self._wants(low, high)

    @property
    def bracket(self) -> Bracket:
        low, high = self._ends()
        tallies = self._tallies()
        censored = high is None and low == self.max_value
        contradicting = tuple(
            value
            for value, tally in sorted(tallies.items())
            if (high is not None and value > high and tally.passes > tally.fails)
            or (value < low and tally.fails > tally.passes)
        )
        return Bracket(
            last_ok=low or None,
            first_oom=high,
            confirmed_ok=tallies[low].passes if low in tallies else 0,
            confirmed_oom=tallies[high].fails if high in tallies else 0,
            censored=censored,
            non_monotone=contradicting,
        )

    # What to run next

    def next_probes(self, k: int) -> list[Probe]:
        """At most `k` probes to run now, most telling first; none while the pending ones must be awaited.

        A probe is handed out once until it is observed or lost.
        """
        chosen: list[Probe] = []
        for value in self._wanted(k):
            probe = Probe(value, self._free_index(value))
            self._pending.add(probe)
            chosen.append(probe)
        return chosen

    def _wanted(self, k: int) -> list[int]:
        if self.done or k < 1:
            return []
        low, high = self._ends()
        if low == 0 and high is None:
            return [] if self._pending else [self.floor]
        if self._tight(low, high):
            return self._unconfirmed(low, high)[:k]
        pending = {probe.value for probe in self._pending}
        rungs = self._ladder(low, high)
        values = [rung for rung in rungs if rung not in pending][:k]
        top = high if high is not None else rungs[0]  # while it is being tried, others may look below it
        taken = sorted(value for value in pending | set(values) if low < value < top)
        return values + self._sections([low, *taken, top], k - len(values))

    def _ladder(self, low: int, high: int | None) -> list[int]:
        """Where the prediction says to look: just beyond it, then just below it; without one, the ceiling."""
        if self.predicted is None:
            rungs = [self.max_value]
        else:
            beyond = self._grid(self._grid(int(self.predicted * (1 + MARGIN))) + self.resolution)
            rungs = [beyond, self._grid(int(self.predicted * (1 - MARGIN)))]
        if high is None and rungs[0] <= low:
            rungs = [self._grid(2 * low)]
        return [rung for rung in rungs if low < rung and (high is None or rung < high)]

    def _sections(self, edges: list[int], k: int) -> list[int]:
        """`k` grid values that cut the gaps between `edges`: evenly a single gap, else the widest ones in
        two.
        """
        if len(edges) == 2:
            low, high = edges
            cuts = {self._inside(low, low + (high - low) * part // (k + 1)) for part in range(1, k + 1)}
            return sorted(value for value in cuts if value < high)
        values: list[int] = []
        for _ in range(k):
            gaps = [gap for gap in itertools.pairwise(sorted({*edges, *values})) if self._interior(*gap)]
            if not gaps:
                break
            low, high = max(gaps, key=lambda gap: gap[1] - gap[0])
            values.append(self._inside(low, (low + high) // 2))
        return values

    # The grid

    def _grid(self, value: int) -> int:
        """Down to a multiple of the resolution, at least one, at most the ceiling."""
        if value >= self.max_value:
            return self.max_value
        return min(max(value // self.resolution, 1) * self.resolution, self.max_value)

    def _interior(self, low: int, high: int) -> bool:
        return self._next_above(low) < high

    def _next_above(self, value: int) -> int:
        return min((value // self.resolution + 1) * self.resolution, self.max_value)

    def _inside(self, low: int, value: int) -> int:
        """The grid value at or below `value`, but above `low`."""
        aligned = value // self.resolution * self.resolution
        return aligned if aligned > low else self._next_above(low)

    # The evidence

    def _tallies(self) -> dict[int, _Tally]:
        tallies: dict[int, _Tally] = {}
        for probe, seen in self._observed.items():
            tally = tallies.setdefault(probe.value, _Tally())
            if seen.passed:
                tally.passes += 1
            else:
                tally.fails += 1
        return tallies

    def _ends(self) -> tuple[int, int | None]:
        """(largest pass below the smallest failure or 0, smallest failure or None), by majority of each
        value's runs.

        A failed run that reached `r` also says: the grid value at or below `r` passes, the next one (or the first
        at or above `fails_from`) fails.
        That word yields to runs at these very values, and its failing half to any pass further up.
        """
        tallies = self._tallies()
        ok = {value for value, tally in tallies.items() if tally.passes > tally.fails}
        oom = {value for value, tally in tallies.items() if tally.fails > tally.passes}
        # A draw is settled by one more run; until then it counts as a failure, so that its runs are asked
        # for.
        oom |= {value for value, tally in tallies.items() if tally.fails == tally.passes}
        highest_ok = max(ok, default=0)
        for probe, seen in self._observed.items():
            if seen.passed or seen.reached is None:
                continue
            below = min(seen.reached, probe.value - 1) // self.resolution * self.resolution
            if below > 0 and below not in tallies:
                ok.add(below)
            if seen.fails_from is not None:
                above = self._next_above(seen.fails_from - 1)
            elif highest_ok - below <= _NEARBY * self.resolution:
                above = self._next_above(max(below, highest_ok))
            else:
                continue
            if highest_ok < above < probe.value and above not in tallies:
                oom.add(above)
        high = min(oom, default=None)
        low = max((value for value in ok if high is None or value < high), default=0)
        return low, high

    def _tight(self, low: int, high: int | None) -> bool:
        """Whether no value is left to try between the ends: only to confirm them."""
        return low == self.max_value if high is None else not self._interior(low, high)

    def _wants(self, low: int, high: int | None) -> dict[int, int]:
        """Runs that each end still lacks. A ceiling that passes as predicted needs no second run: it is the
        longest.
        """
        tallies = self._tallies()
        foretold = self.predicted is None or self.predicted >= self.max_value
        wants: dict[int, int] = {}
        if high is not None:
            wants[high] = self.confirm - tallies.get(high, _Tally()).fails
        if low > 0:
            enough = 1 if high is None and foretold else self.confirm
            wants[low] = enough - tallies.get(low, _Tally()).passes
        return {value: want for value, want in wants.items() if want > 0}

    def _unconfirmed(self, low: int, high: int | None) -> list[int]:
        """The runs still to be started at the two ends, one entry each, the ends in turn."""
        wants = self._wants(low, high)
        missing = [value for turn in range(self.confirm) for value, want in wants.items() if turn < want]
        for probe in self._pending:
            if probe.value in missing:
                missing.remove(probe.value)
        return missing

    def _free_index(self, value: int) -> int:
        index = 0
        while Probe(value, index) in self._observed or Probe(value, index) in self._pending:
            index += 1
        return index
