"""Summarises a run of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`outcomes`: of every work item that has one, whichever run computed it. `left`: items without one.

    `troubles`: why items are left or open, and which devices were retired; empty when the sweep came to its end.
    `unloadable`: models that could not be loaded for any cell.
    """

    run_id: str
    computed: int
    reused: int
    left: int
    outcomes: Mapping[Outcome, int]
    troubles: tuple[str, ...] = ()
    stopped: bool = False
    unloadable: tuple[str, ...] = ()

    @property
    def open(self) -> int:
        """How many items the next run of the same command tries: those without an outcome, and those that ended in one
        that says nothing about them."""
        return self.left + sum(count for outcome, count in self.outcomes.items() if outcome.is_open)

    @property
    def exit_status(self) -> int:
        """0 every cell has an outcome (an OOM is one); 1 something is left, and the same command does it; 3 nothing is
        left, but a cell is quarantined, or a model could not be loaded for any cell.
        """
        if self.open or self.stopped:
            return 1
        return 3 if self.unloadable or self.outcomes.get(Outcome.QUARANTINED) else 0

    def notes(self) -> list[str]:
        """Return what a person has to know at the end."""
        told = [f"{name} could not be loaded for any cell (load_error)" for name in self.unloadable]
        return [*self.troubles, *told]

    def sentence(self) -> str:
        cells = f"{self.computed} cell{'s' if self.computed != 1 else ''} computed, {self.reused} reused"
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        left = f"; {self.left} left without an outcome" if self.left else ""
        tried = f"; {self.open - self.left} to be tried again" if self.open > self.left else ""
        go_on = ": run the same command to go on" if self.open else ""
        return f"{cells}{f' ({counts})' if counts else ''}{left}{tried}{go_on}"
