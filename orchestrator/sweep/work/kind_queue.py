"""Everything that is to be done on one kind of device: the plan's cells and the probes of the searches."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from orchestrator.boundary.prune import implied
from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Search
from orchestrator.fleet import SlotId
from orchestrator.sweep.outcomes import Ledger
from orchestrator.sweep.retry_policy import RetryHistory
from orchestrator.sweep.work.item import Key, WorkItem, rank_plan
from orchestrator.sweep.work.queue import WorkQueue
from orchestrator.sweep.work.searching import Searching
from workers.attempt import Attempt, Device
from workers.cell import Cell


class Estimates(Protocol):
    """What the predictions say, for order, limits and searches. Nothing here touches a device."""

    def seconds(self, cell: Cell, device: Device) -> float:
        """How long the cell should take on the device, load included."""

    def step_seconds(self, cell: Cell, device: Device) -> float:
        """How long the slowest step that reports progress should take."""

    def peak_bytes(self, cell: Cell, device: Device) -> int | None:
        """Predicted peak of device memory; None when the model's shape cannot be read."""

    def start(self, question: Question, device: Device) -> tuple[Question, Search]:
        """The question as the device settles it, and its search from the prediction."""


class KindWork:
    """`slots`: the devices of this kind that live now, idle or running. `absent_since`: when the last one went."""

    def __init__(
        self,
        device: Device,
        cells: Sequence[Cell],
        questions: Sequence[Question],
        ledger: Ledger,
        estimates: Estimates,
        now: float,
    ) -> None:
        self.kind = device.kind
        self.slots: dict[SlotId, Device] = {}
        self.absent_since: float | None = now
        self.given_up = False
        self.device = device
        self._ledger = ledger
        self._estimates = estimates
        keyed = {Key(cell.cell_id, self.kind): cell for cell in cells}
        todo = {key: cell for key, cell in keyed.items() if key not in ledger.finals}
        seconds = [estimates.seconds(cell, device) for cell in todo.values()]
        self.queue = WorkQueue(self._standing_in(item) for item in rank_plan(todo, seconds))
        self._alike: dict[Cell, list[Key]] = defaultdict(list)
        for item in self.queue:
            self._alike[_likeness(item.cell)].append(item.key)
        self.searching = Searching(
            self.kind, [estimates.start(question, device) for question in questions], ledger.probes
        )

    @property
    def idle_work(self) -> bool:
        """Whether something waits for a device, or a search may still ask for one."""
        return bool(len(self.queue)) or self.searching.active() > 0

    def refill(self, idle: int) -> None:
        """Ask the searches for probes while devices have nothing to do, or plan cells would go before probes."""
        for cell in self.searching.next(idle, spread=not len(self.queue)):
            key = Key(cell.cell_id, self.kind)
            seconds = self._estimates.seconds(cell, self.device)
            item = WorkItem(key=key, cell=cell, seconds=seconds, rank=(-seconds, 0, 0), urgent=True)
            self.queue.push(self._standing_in(item))

    def requeue(self, item: WorkItem, history: RetryHistory) -> None:
        """A retry goes before everything else, so that a sweep does not end on its doubtful cells."""
        self.queue.push(dataclasses.replace(item, urgent=True, avoid=history.failed_on, alone=history.alone))

    def elsewhere(self, item: WorkItem) -> bool:
        return any(device.uuid not in item.avoid for device in self.slots.values())

    def implied(self, attempt: Attempt) -> list[WorkItem]:
        """What waits here and would run out of memory too. An index finds its kin: a plan may hold 100,000 cells."""
        kin = (self.queue.get(key) for key in self._alike.get(_likeness(attempt.cell), ()))
        return [item for item in kin if item is not None and implied(attempt, item.cell)]

    def settle(self, key: Key, attempt: Attempt) -> None:
        if attempt.cell.purpose == "probe":
            self.searching.settle(key, attempt)

    def _standing_in(self, item: WorkItem) -> WorkItem:
        history = self._ledger.history(item.key)
        if not history.failed_on:
            return item
        return dataclasses.replace(item, urgent=True, avoid=history.failed_on)


def _likeness(cell: Cell) -> Cell:
    """Cells of one likeness are those that `boundary.prune.implied` may find implied by each other."""
    return dataclasses.replace(cell, length=0, repeat=0, seed=0, purpose="measure")
