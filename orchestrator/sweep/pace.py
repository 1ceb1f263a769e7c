"""Tracks actual against predicted durations of cells. Gives the ETA, and how long to batch results before a journal
write."""

from dataclasses import dataclass

_LARGE_FLEET = 32  # devices at work
_LINGER_SHARE, _MAX_LINGER_S = 0.01, 1.0  # of a mean cell's duration


@dataclass(slots=True)
class Pace:
    returned: int = 0
    actual_s: float = 0.0
    predicted_s: float = 0.0

    def note(self, duration_s: float, predicted_s: float) -> None:
        self.returned += 1
        self.actual_s += duration_s
        self.predicted_s += predicted_s

    def linger_s(self, running: int) -> float:
        """Return how long to wait for more results before a journal write. A write costs the same for one attempt as
        for ten, so a large fleet waits; a small one does not."""
        if running < _LARGE_FLEET or not self.returned:
            return 0.0
        return min(_LINGER_SHARE * self.actual_s / self.returned, _MAX_LINGER_S)

    def eta_s(self, predicted_left_s: float, devices: int) -> float | None:
        """Return the time left in seconds. None before the first attempt came back, without devices, and when all that
        is left is overdue."""
        if not devices or self.predicted_s <= 0 or predicted_left_s <= 0:
            return None
        return predicted_left_s / devices * self.actual_s / self.predicted_s
