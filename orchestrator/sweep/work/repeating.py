"""Decides which measured cells run once more: `repeats: auto`. Pure.

What is compared is the ratio of two speeds. Its 95 % interval is known to `RATIO_WIDTH` on each side, once each of the
two is known to `RATIO_WIDTH` over the square root of two.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.student_t import half_width
from workers.cell import Cell
from workers.outcome import Outcome

RATIO_WIDTH = 0.05
MOST_REPEATS = 10


@dataclass(slots=True)
class _Repeats:
    """Of one cell. `waiting`: those that have no outcome yet. `over`: more of them would tell nothing."""

    made: int = 0
    waiting: int = 0
    over: bool = False
    speeds: list[float] = field(default_factory=list)

    def need_more(self) -> bool:
        if self.waiting or self.over or self.made >= MOST_REPEATS:
            return False
        half = half_width(self.speeds)
        return half is None or half > RATIO_WIDTH / 2**0.5 * (sum(self.speeds) / len(self.speeds))


class Repeating:
    """`cells`: of the plan, each with its first repeats. Those whose speed counts nowhere have no more."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._by_cell: dict[Cell, _Repeats] = {}
        for cell in cells:
            if not cell.workload_spec.measures_speed:
                continue
            repeats = self._by_cell.setdefault(dataclasses.replace(cell, repeat=0), _Repeats())
            repeats.made += 1
            repeats.waiting += 1

    def note(self, cell: Cell, outcome: Outcome, tokens_per_s: float | None) -> Cell | None:
        """Take the final outcome of a repeat. Returns the next repeat to run, if one is needed."""
        repeats = self._by_cell.get(dataclasses.replace(cell, repeat=0))
        if repeats is None:  # a probe, or nothing that measures speed
            return None
        repeats.waiting -= 1
        if outcome is Outcome.OK and tokens_per_s:
            repeats.speeds.append(tokens_per_s)
        else:
            repeats.over = True
        if not repeats.need_more():
            return None
        another = dataclasses.replace(cell, repeat=repeats.made)
        repeats.made += 1
        repeats.waiting += 1
        return another
