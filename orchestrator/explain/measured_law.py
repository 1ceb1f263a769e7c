"""The law of a cache as it was measured: bytes with each token and bytes once, each with its 95 % interval."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.explain.slope import slopes, thinned
from workers.attempt import Attempt
from workers.outcome import Outcome

#: Of the normal distribution, two-sided, 95 %.
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """`low`, `high`: 95 %; None where too few points were measured to tell."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class MeasuredLaw:
    """Of all sequences and both models: `constant_bytes + n * bytes_per_token`, n tokens of each sequence read."""

    bytes_per_token: Interval
    constant_bytes: Interval
    points: int


def measured_law(attempts: Iterable[Attempt], beyond: int = 0) -> MeasuredLaw | None:
    """From the bytes that were counted along the runs of one mode and at their ends. None with fewer than two lengths.

    `beyond`: the longest sliding window; where runs are longer, only what they counted beyond it is used. The slope is the
    median over all pairs (Theil 1950), its interval Sen's (1968), the constant the median of what is left.
    """
    points = sorted({point for attempt in attempts for point in _points(attempt)})
    far = [point for point in points if point[0] >= beyond]
    if len({n for n, _ in far}) > 1:
        points = far
    kept = thinned(points)
    found = sorted(slopes(kept))
    if not found:
        return None
    slope = _of_pairs(found, len(kept))
    return MeasuredLaw(slope, _left(points, slope), len(points))


def _points(attempt: Attempt) -> Iterable[tuple[int, int]]:
    """(tokens read, bytes): a token is read one step after it is known."""
    prompt, measured = attempt.cell.prompt_tokens, attempt.measured
    for step in attempt.steps:
        if step.kv_cache_bytes is not None:
            yield prompt + step.token_index, step.kv_cache_bytes
    if attempt.outcome is Outcome.OK and measured.kv_cache_bytes is not None and measured.new_tokens > 0:
        yield prompt + measured.new_tokens - 1, measured.kv_cache_bytes


def _of_pairs(found: Sequence[float], points: int) -> Interval:
    """Sen's interval: as many of the sorted slopes are cut off at both ends as Kendall's tau allows by chance."""
    spread = _Z * math.sqrt(points * (points - 1) * (2 * points + 5) / 18)
    low, high = math.floor((len(found) - spread) / 2), math.ceil((len(found) + spread) / 2)
    value = median(found)
    return Interval(value, found[low], found[high]) if low >= 0 and high < len(found) else Interval(value)


def _left(points: Sequence[tuple[int, int]], slope: Interval) -> Interval:
    """What the slope leaves. Its interval is that of the slope, carried to no tokens."""
    value = median(count - slope.value * n for n, count in points)
    if slope.low is None or slope.high is None:
        return Interval(value)
    middle = median(n for n, _ in points)
    return Interval(
        value, value - (slope.high - slope.value) * middle, value + (slope.value - slope.low) * middle
    )
