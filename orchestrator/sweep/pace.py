"""How fast the sweep goes: against its predictions, for the ETA; and in cells, for how long to wait for company."""

from dataclasses import dataclass

_LARGE_FLEET = 32  # devices at work
_LINGER_SHARE, _MAX_LINGER_S = 0.01, 1.0  # of a mean cell's duration


@dataclass(slots=True)
class Pace:
    returned: int = 0
    spent_s: float = 0.0
    foretold_s: float = 0.0

    def note(self, duration_s: float, predicted_s: float) -> None:
        self.returned += 1
        self.spent_s += duration_s
        self.foretold_s += predicted_s

    def linger_s(self, running: int) -> float:
        """A part of the journal costs the same for one attempt as for ten: a large fleet waits for company."""
        if running < _LARGE_FLEET or not self.returned:
            return 0.0
        return min(_LINGER_SHARE * self.spent_s / self.returned, _MAX_LINGER_S)

    def eta_s(self, predicted_left_s: float, devices: int) -> float | None:
        """None before the first attempt came back, without devices, and when all that is left is overdue."""
        if not devices or self.foretold_s <= 0 or predicted_left_s <= 0:
            return None
        return predicted_left_s / devices * self.spent_s / self.foretold_s
