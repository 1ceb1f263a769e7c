"""Holds the work for one kind of device: the plan's cells that wait, and the probes of its searches."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from orchestrator.boundary.prune import implied
from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Search
from orchestrator.sweep.outcomes import Outcomes
from orchestrator.sweep.retry_policy import RetryHistory
from orchestrator.sweep.work.item import Key, WorkItem, rank_plan
from orchestrator.sweep.work.queue import WorkQueue
from orchestrator.sweep.work.repeating import Repeating
from orchestrator.sweep.work.searching import Searching
from workers.attempt import Attempt, Device
from workers.cell import Cell


class PredictedPeak(NamedTuple):
    """Device bytes, and where they come from: `orchestrator.predict.memory.PredictedBy`."""

    bytes: int
    predicted_by: str


class Estimates(Protocol):
    """Predicts times and memory, for the order of cells, their limits and the searches. Touches no device."""

    def seconds(self, cell: Cell, device: Device) -> float:
        """Return how long the cell should take on the device, load included."""

    def step_seconds(self, cell: Cell, device: Device) -> float:
        """Return how long the slowest step that reports progress should take."""

    def foresee(self, cell: Cell, device: Device) -> None:
        """Begin to predict the peak of a cell that starts. Does not wait."""

    def peak(self, cell: Cell, device: Device) -> PredictedPeak | None:
        """Return the predicted peak of device memory by the best source that is known by now, None when the model's
        shape cannot be read."""

    def bytes_too_large(self, cell: Cell) -> int | None:
        """Return the bytes of the weights where they alone exceed the cell's budget, else None."""

    def start(self, question: Question, device: Device) -> tuple[Question, Search] | None:
        """Return the question as it is asked of the device, and its search, which starts at the prediction. None while
        the prediction is in the making: ask again."""


class KindWork:
    """`kind`: the name of the kind of device. `device`: one of that kind. `repeat_more`: cells run again until their speeds
    are known well enough."""

    def __init__(
        self,
        device: Device,
        cells: Sequence[Cell],
        questions: Sequence[Question],
        outcomes: Outcomes,
        estimates: Estimates,
        *,
        repeat_more: bool = False,
    ) -> None:
        self.kind = device.kind
        self.device = device
        self._outcomes = outcomes
        self._estimates = estimates
        keyed = {Key(cell.cell_id, self.kind): cell for cell in cells}
        todo = {key: cell for key, cell in keyed.items() if key not in outcomes.finals}
        seconds = [estimates.seconds(cell, device) for cell in todo.values()]
        self.queue = WorkQueue(self._with_history(item) for item in rank_plan(todo, seconds))
        self._alike: dict[Cell, list[Key]] = defaultdict(list)
        for item in self.queue:
            self._alike[_likeness(item.cell)].append(item.key)
        self._repeating = Repeating(cells) if repeat_more else None
        for key, cell in keyed.items():
            if key not in todo:
                self._repeat(key, cell)
        self.searching = Searching(
            self.kind, questions, lambda question: estimates.start(question, device), outcomes.probes
        )

    @property
    def has_work(self) -> bool:
        """Whether something waits for a device, or a search may still ask for one."""
        return bool(len(self.queue)) or self.searching.active() > 0

    def sizes(self) -> set[int]:
        """Return how many devices cells ask for that wait or may still come: each number that occurs."""
        return self.queue.sizes() | self.searching.sizes()

    def refill(self, idle: int) -> list[WorkItem]:
        """Queue probes for `idle` devices, and return them. They go before the plan's cells."""
        items = []
        for cell in self.searching.next(idle, spread=not len(self.queue)):
            key = Key(cell.cell_id, self.kind)
            seconds = self._estimates.seconds(cell, self.device)
            item = WorkItem(key=key, cell=cell, seconds=seconds, rank=(-seconds, 0, 0), urgent=True)
            items.append(self._with_history(item))
            self.queue.push(items[-1])
        return items

    def requeue(self, item: WorkItem, history: RetryHistory) -> None:
        """Queue a retry. It goes before everything else, so that a sweep does not end on its doubtful cells."""
        self.queue.push(dataclasses.replace(item, urgent=True, avoid=history.failed_on, alone=history.alone))

    def implied(self, attempt: Attempt) -> list[WorkItem]:
        """Return what waits here and would run out of memory as `attempt` did. An index by likeness finds it: a plan
        may hold 100,000 cells."""
        kin = (self.queue.get(key) for key in self._alike.get(_likeness(attempt.cell), ()))
        return [item for item in kin if item is not None and implied(attempt, item.cell)]

    def note_final(self, key: Key, attempt: Attempt) -> None:
        """Take the final attempt of an item: of a probe for the searches, of a measured cell for its next repeat."""
        if attempt.cell.purpose == "probe":
            self.searching.note_final(key, attempt)
        else:
            self._repeat(key, attempt.cell)

    def _repeat(self, key: Key, cell: Cell) -> None:
        """Queue another repeat of `cell`, which has ended, where one is needed. An earlier run may have it already."""
        known: Cell | None = cell
        while known is not None and self._repeating is not None:
            another = self._repeating.note(known, self._outcomes.finals[key], self._outcomes.speeds[key])
            known = None
            if another is not None:
                key = Key(another.cell_id, self.kind)
                known = another if key in self._outcomes.finals else None
                if known is None:
                    self._push_repeat(key, another)

    def _push_repeat(self, key: Key, cell: Cell) -> None:
        seconds = self._estimates.seconds(cell, self.device)
        item = WorkItem(key=key, cell=cell, seconds=seconds, rank=(-seconds, cell.repeat, 0))
        self._alike[_likeness(cell)].append(key)
        self.queue.push(self._with_history(item))

    def _with_history(self, item: WorkItem) -> WorkItem:
        """Add what earlier runs know of the item."""
        history = self._outcomes.history(item.key)
        if not history.failed_on:
            return item
        return dataclasses.replace(item, urgent=True, avoid=history.failed_on)


def _likeness(cell: Cell) -> Cell:
    """Return what cells have in common where `boundary.prune.implied` may find one implied by another."""
    return dataclasses.replace(cell, length=0, repeat=0, seed=0, purpose="measure")
