"""The boundary search: a pure state machine over integers, without devices, clocks or randomness.

Values lie on a grid: the multiples of `resolution`, and `max_value` itself. The search stores finished probes and
nothing else. It computes the next value, the bracket and its own end from that set, so an interrupted search goes on
where it stood once its finished probes are observed again, in any order.

How it chooses the next value, after the floor, first rule that applies:

1. Both ends of an interval no wider than the resolution are known: confirm them in fresh processes. No value is run
   twice before that.
2. A failed run told how far it came (its *account*): try the two values that the account names, the lower one
   first, or cut the interval that it names. An account is a hint; only runs at the values themselves count as evidence.
3. Just beyond and just below the prediction, where a bisection would need more than `_FEW_CUTS` cuts.
4. Cut the interval between the largest pass and the smallest failure in k + 1 equal parts, for k devices.

Rules 2 and 3 may be wrong. A value that they name is moved into the interval as far as it takes to keep the search within
`_DETOURS` probes of a plain bisection of the interval that was open when the first failure came back.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Errors of the prediction, relative to the boundary, that cost one probe and two. A run that ends at its own out-of-memory takes the
#: same time however far beyond the boundary it aimed.
MARGINS = (0.03, 0.1)
#: Where both margins passed: the next value is so many times the largest pass.
_GALLOP = 4
#: Resolutions by which an account may miss and still point at the next value: it counts what it held when it failed.
_NEARBY = 2
#: Where a bisection needs no more cuts, the prediction is no hint: it may cost one more than it saves.
_FEW_CUTS = 3
#: Probes that wrong hints may add to a plain bisection.
_DETOURS = 2


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """Run number `confirmation` (0, 1, ...) at `value`, in a fresh process."""

    value: int
    confirmation: int


@dataclass(frozen=True, slots=True)
class Bracket:
    """Memory runs out in `(last_ok, first_oom]`.

    `last_ok` None: nothing passed, down to the resolution. `first_oom` None: no failure is known; with `censored` the
    ceiling itself passed. `confirmed_ok`, `confirmed_oom`: fresh processes that agreed at exactly these values.
    `non_monotone`: values that passed above a failure, or failed below a pass, by the majority of their runs.
    `refuted`: values whose scout ended otherwise than the majority of their runs.
    """

    last_ok: int | None
    first_oom: int | None
    confirmed_ok: int
    confirmed_oom: int
    censored: bool
    non_monotone: tuple[int, ...] = ()
    refuted: tuple[int, ...] = ()


@dataclass(slots=True)
class _Tally:
    passes: int = 0
    fails: int = 0
    scout: bool | None = None

    @property
    def passed(self) -> bool:
        """By majority. A draw counts as a failure until one more run decides. By the scout where nothing else ran."""
        if not (self.passes or self.fails):
            return bool(self.scout)
        return self.passes > self.fails

    @property
    def refutes(self) -> bool:
        return self.scout is not None and self.passes != self.fails and self.scout != self.passed


@dataclass(frozen=True, slots=True)
class _Observed:
    passed: bool
    passed_up_to: int | None
    fails_from: int | None


@dataclass(slots=True)
class Search:
    """Finds the bracket of one boundary.

    `predicted`: the largest value that should pass, None when memory is constant in the value.
    `floor`: a small value that should pass, tried first. It is cheap, and a second length far from the boundary tells
    how memory grows.
    `max_value`: the ceiling; when it passes the result is censored.
    `confirm`: runs that must agree on each side; a value gets at most 2 * confirm - 1 runs.
    `scouts`: confirmation 0 of each value is a cheaper run that stands in for the real ones until one was made there: both
    ends of the bracket are confirmed by real runs. Once real runs refuted a scout, none is trusted.
    `margins`: errors of the prediction that are tried, smallest first.
    """

    predicted: int | None
    floor: int
    resolution: int
    max_value: int
    confirm: int
    scouts: bool = False
    margins: tuple[float, ...] = MARGINS
    _observed: dict[Probe, _Observed] = field(default_factory=dict)
    _pending: set[Probe] = field(default_factory=set)

    def __post_init__(self) -> None:
        if min(self.floor, self.resolution, self.max_value, self.confirm) < 1:
            raise ValueError("floor, resolution, max_value and confirm are 1 or more")
        self.floor = self._grid(self.floor)

    # What came back

    def observe(
        self, probe: Probe, passed: bool, passed_up_to: int | None = None, fails_from: int | None = None
    ) -> None:
        """Store a finished probe.

        `passed_up_to`: a failed run's own account of the largest value it passed on its way; None when it cannot tell.
        `fails_from`: the smallest value that would have failed as this one did, where the run moved in strides (a
        prompt read in chunks); None: the value after `passed_up_to`.
        """
        self._pending.discard(probe)
        self._observed[probe] = _Observed(passed, passed_up_to, fails_from)

    def observe_lost(self, probe: Probe) -> None:
        """Free a probe that ended without an answer about memory (node lost, hang, cancelled).

        It may be handed out again.
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
        """Of real runs alone: while scouts still look for the ends, nothing is known of them."""
        runs = self._runs()
        tallies = _evidence(runs)
        low, high = _ends(tallies)
        contradicting = tuple(
            value
            for value, tally in sorted(tallies.items())
            if (high is not None and value > high and tally.passed)
            or (value < low and tally.fails > tally.passes)
        )
        return Bracket(
            last_ok=low or None,
            first_oom=high,
            confirmed_ok=tallies[low].passes if low in tallies else 0,
            confirmed_oom=tallies[high].fails if high in tallies else 0,
            censored=high is None and low == self.max_value,
            non_monotone=contradicting,
            refuted=tuple(sorted(value for value, tally in runs.items() if tally.refutes)),
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
        if self._tight(low, high):
            return self._unconfirmed(low, high)[:k]
        if low == 0 and high is None:
            return [] if self._pending else [self.floor]
        hints = self._hints(low, high)
        if high is None:
            top = hints[0] if hints else self._grid(_GALLOP * low)
            hints = [top]
        else:
            top = high
            hints = [self._affordable(value, low, high) for value in hints]
        pending = {probe.value for probe in self._pending}
        values = [value for value in dict.fromkeys(hints) if value not in pending][:k]
        taken = sorted(value for value in pending | set(values) if low < value < top)
        return values + self._sections([low, *taken, top], k - len(values))

    def _hints(self, low: int, high: int | None) -> list[int]:
        """Values between the ends that accounts or the prediction point at, most telling first."""
        named = self._named_by_accounts(low, high) if high is not None else []
        if self.predicted is None:
            rungs = [self.max_value]
        else:
            beyond = [
                self._grid(self._grid(int(self.predicted / (1 - m))) + self.resolution) for m in self.margins
            ]
            below = [self._grid(int(self.predicted / (1 + margin))) for margin in self.margins]
            rungs = [*beyond, *below]
        within = [rung for rung in rungs if low < rung and (high is None or rung < high)]
        if high is not None:
            if self._bisections(high - low) <= _FEW_CUTS:
                return named
            within.sort(reverse=True)  # the nearest to the failure: what lies below it is cut off by one pass
        return named or within[:1]

    def _named_by_accounts(self, low: int, high: int) -> list[int]:
        """The values that confirm or refute the account of the lowest failed run that gave one; none if runs contradict it."""
        accounts = sorted(
            (probe.value, seen.passed_up_to, seen.fails_from)
            for probe, seen in self._observed.items()
            if not seen.passed and seen.passed_up_to is not None
        )
        for value, passed_up_to, fails_from in accounts:
            passes = min(passed_up_to, value - 1) // self.resolution * self.resolution
            fails = self._next_above(passes if fails_from is None else max(fails_from - 1, passes))
            if fails <= low:
                if low - passes <= _NEARBY * self.resolution and self._interior(low, high):
                    return [self._next_above(low)]
            elif passes >= high:
                if fails - high <= _NEARBY * self.resolution and self._interior(low, high):
                    return [self._inside(low, high - 1)]
            elif passes > low and fails < high:
                if self._interior(passes, fails):
                    return [self._inside(passes, (passes + fails) // 2)]
                return [passes, fails]
            elif named := [end for end in (passes, fails) if low < end < high]:
                return (
                    named  # a run within what it names has moved one end: the other tells whether it is true
                )
        return []

    def _affordable(self, value: int, low: int, high: int) -> int:
        """`value`, moved no further than it takes for a bisection of the larger part that it leaves to keep the search
        within `_DETOURS` of a bisection."""
        width, used = self._since_first_failure()
        most = self.resolution * 2 ** max(self._bisections(width) + _DETOURS - used - 1, 0)
        if value - low > most:
            return self._inside(low, low + most)
        if high - value > most:
            return min(self._inside(low, high - most + self.resolution - 1), high - 1)
        return value

    def _since_first_failure(self) -> tuple[int, int]:
        """The interval that was open when the first failure was observed, and how many values were tried since."""
        tallies = self._tallies()
        order = [value for value in dict.fromkeys(p.value for p in self._observed) if value in tallies]
        failed = next(value for value in order if not tallies[value].passed)
        before = order[: order.index(failed)]
        return failed - max((value for value in before if value < failed), default=0), len(order) - len(
            before
        ) - 1

    def _bisections(self, width: int) -> int:
        """Cuts in two until an interval of `width` is no wider than the resolution."""
        steps = -(-width // self.resolution)
        return max(steps - 1, 0).bit_length()

    def _sections(self, edges: list[int], k: int) -> list[int]:
        """`k` grid values that cut the gaps between `edges`: evenly a single gap, else the widest ones in two."""
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
        """What steers the search, by value. A scout alone does not once another one was refuted."""
        runs = self._runs()
        return _evidence(runs) if any(tally.refutes for tally in runs.values()) else runs

    def _runs(self) -> dict[int, _Tally]:
        """All that ran at each value."""
        tallies: dict[int, _Tally] = {}
        for probe, seen in self._observed.items():
            tally = tallies.setdefault(probe.value, _Tally())
            if self.scouts and probe.confirmation == 0:
                tally.scout = seen.passed
            elif seen.passed:
                tally.passes += 1
            else:
                tally.fails += 1
        return tallies

    def _ends(self) -> tuple[int, int | None]:
        return _ends(self._tallies())

    def _tight(self, low: int, high: int | None) -> bool:
        """Whether no value is left to try between the ends: only to confirm them."""
        return low == self.max_value if high is None else not self._interior(low, high)

    def _wants(self, low: int, high: int | None) -> dict[int, int]:
        """Runs that each end still lacks. A ceiling that passes as predicted needs no second run: it is the longest."""
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
        index = 1 if self.scouts and any(tally.refutes for tally in self._runs().values()) else 0
        while Probe(value, index) in self._observed or Probe(value, index) in self._pending:
            index += 1
        return index


def _evidence(runs: Mapping[int, _Tally]) -> dict[int, _Tally]:
    """Without the values at which a scout alone ran."""
    return {value: tally for value, tally in runs.items() if tally.passes or tally.fails}


def _ends(tallies: Mapping[int, _Tally]) -> tuple[int, int | None]:
    """The largest pass below the smallest failure (0: none), and the smallest failure (None: none).

    Each value counts by the majority of its runs.
    """
    high = min((value for value, tally in tallies.items() if not tally.passed), default=None)
    passed = (value for value, tally in tallies.items() if tally.passed)
    return max((value for value in passed if high is None or value < high), default=0), high
