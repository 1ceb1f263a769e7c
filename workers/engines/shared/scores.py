"""Sums of negative log-likelihoods, by the scored token's position."""

from collections.abc import Sequence

from workers.engines.sizes import SCORE_COARSE, SCORE_COARSE_FROM, SCORE_FINE
from workers.modes import ScoreBucket


def bucket_of(position: int) -> tuple[int, int]:
    """The bucket [start, end) of a position."""
    width = SCORE_FINE if position < SCORE_COARSE_FROM else SCORE_COARSE
    start = position - position % width
    return start, start + width


class Tally:
    """Sums negative log-likelihoods (nats) into buckets."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], tuple[float, int]] = {}
        self.scored = 0

    def add(self, positions: Sequence[int], nll: Sequence[float]) -> None:
        for position, value in zip(positions, nll, strict=True):
            total, count = self._sums.get(bucket_of(position), (0.0, 0))
            self._sums[bucket_of(position)] = (total + value, count + 1)
        self.scored += len(positions)

    def buckets(self) -> list[ScoreBucket]:
        return [
            ScoreBucket(position_start=start, position_end=end, nll_sum=total, num_tokens=count)
            for (start, end), (total, count) in sorted(self._sums.items())
        ]
