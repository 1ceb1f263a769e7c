"""Summarises a run of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`outcomes`: of every work item that has one, whichever run computed it. `left`: items without one.

    `troubles`: why items are left, and which devices were retired; empty when the sweep came to its end.
    """

    run_id: str
    computed: int
    reused: int
    left: int
    outcomes: Mapping[Outcome, int]
    troubles: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def exit_status(self) -> int:
        """0 every cell has an outcome (an OOM is one); 1 some cell has none, or none of its own making, or no model
        could be loaded at all.
        """
        ended = {outcome for outcome, count in self.outcomes.items() if count}
        unfinished = any(outcome.is_unfinished for outcome in ended)
        return 1 if unfinished or self.left or self.stopped or ended == {Outcome.LOAD_ERROR} else 0

    def sentence(self) -> str:
        cells = f"{self.computed} cell{'s' if self.computed != 1 else ''} computed, {self.reused} reused"
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        left = f"; {self.left} left without an outcome: run the same command to go on" if self.left else ""
        return f"{cells}{f' ({counts})' if counts else ''}{left}"
