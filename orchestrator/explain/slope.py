"""A slope that one odd point in four does not move."""

from collections.abc import Sequence
from statistics import median

#: More points than this are thinned evenly: the pairs are quadratic.
_MOST = 200


def theil_sen(points: Sequence[tuple[float, float]]) -> float | None:
    """The median slope over all pairs of (x, y) (Theil 1950, Sen 1968); None with fewer than two distinct
    x.
    """
    found = slopes(thinned(points))
    return median(found) if found else None


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sorted, and no more of them than have pairs that can be gone through."""
    step = max(1, -(-len(points) // _MOST))
    return sorted(points)[::step]


def slopes(points: Sequence[tuple[float, float]]) -> list[float]:
    """Over all pairs of (x, y) with distinct x, sorted by x."""
    return [
        (y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x2 > x1
    ]
