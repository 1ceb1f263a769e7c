"""Decides what must be journalled of an attempt that came back, and what follows from it. The loop acts."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.fleet import SlotId
from orchestrator.journal.record import Record
from orchestrator.sweep import driver_attempts
from orchestrator.sweep.in_flight import InFlight
from orchestrator.sweep.outcomes import Outcomes
from orchestrator.sweep.retry_policy import (
    Blame,
    Limits,
    NextStep,
    RetryHistory,
    Strikes,
    after_attempt,
)
from orchestrator.sweep.work.item import Key, WorkItem
from orchestrator.sweep.work.kind_queue import Estimates, KindWork
from orchestrator.watch import CellFinished, Notice
from workers.attempt import Attempt, Device


@dataclass(slots=True)
class Decisions:
    """What follows from one batch of attempts. `records` are journalled first; the rest follows.

    `closed`: items that have their final outcome with this, pruned ones too. `failing`: devices to retire.
    """

    records: list[Record] = field(default_factory=list)
    news: list[CellFinished | Notice] = field(default_factory=list)
    requeue: list[tuple[WorkItem, RetryHistory]] = field(default_factory=list)
    finals: list[tuple[WorkItem, Attempt]] = field(default_factory=list)
    closed: list[Key] = field(default_factory=list)
    failing: list[tuple[SlotId, Device]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Decider:
    """Notes every decision in `outcomes` at once, so that attempts of one batch see each other's."""

    run_id: str
    outcomes: Outcomes
    kinds: Mapping[str, KindWork]
    limits: Limits
    strikes: Strikes
    estimates: Estimates

    def decide(
        self, flight: InFlight, attempt: Attempt, blame: Blame, now: float, decisions: Decisions
    ) -> None:
        """Add to `decisions` what follows from `attempt`, which is what came of `flight`."""
        item = flight.item
        history, step = after_attempt(self.outcomes.history(item.key), attempt, blame, self.limits)
        self._record(decisions, flight.slot, attempt, flight.device, final=step is NextStep.CLOSE)
        if self.strikes.note(item.key, attempt, blame):
            assert attempt.device is not None  # it has a strike
            decisions.failing.append((flight.slot_of(attempt.device), attempt.device))
        if step is NextStep.RETRY:
            self.outcomes.note(item.key, history, None)
            decisions.requeue.append((item, history))
            return
        final = attempt
        if step is NextStep.QUARANTINE:
            number = history.attempts + 1
            final = driver_attempts.quarantined(attempt, item.key.cell_id, number, history.crashes, now)
            self._record(decisions, None, final, flight.device, final=True)
        self.outcomes.note(item.key, history, final)
        decisions.finals.append((item, final))
        decisions.closed.append(item.key)
        if attempt.outcome.is_device_oom:
            self._prune(attempt, self.kinds[item.key.device_kind], now, decisions)

    def close_too_large(
        self, kind: KindWork, items: Iterable[WorkItem], now: float, decisions: Decisions
    ) -> None:
        """Add to `decisions` the outcome of each of `items`, which wait, whose budget its weights alone exceed."""
        for item in items:
            needed = self.estimates.bytes_too_large(item.cell)
            if needed is not None:
                final = driver_attempts.too_large(
                    item.cell, item.key.cell_id, self._next_number(item), needed, kind.device, now
                )
                self._close(kind, item, final, decisions)
                decisions.finals.append((item, final))

    def close_unplaceable(
        self, kind: KindWork, sizes: Collection[int], most: int, now: float, decisions: Decisions
    ) -> None:
        """Add to `decisions` the outcome of the cells that wait for as many devices as `sizes` say, of which a node has at
        `most` so many."""
        for item in [item for item in kind.queue if item.cell.devices in sizes]:
            final = driver_attempts.unplaceable(
                item.cell, item.key.cell_id, self._next_number(item), most, kind.device, now
            )
            self._close(kind, item, final, decisions)
            decisions.finals.append((item, final))

    def note_duplicate(self, attempt: Attempt, decisions: Decisions) -> None:
        """A device that was lost hands back its attempt after all: it is recorded, and nothing follows from it."""
        decisions.records.append(Record(self.run_id, attempt))
        decisions.news.append(Notice(f"a late result of lease {attempt.lease_id}: recorded as a duplicate"))

    def undo(self, decisions: Decisions) -> int:
        """Take back what could not be journalled. Returns how many items are without an outcome for it."""
        for key in decisions.closed:
            self.outcomes.forget(key)
        return len(decisions.closed) + len(decisions.requeue)

    def _prune(self, attempt: Attempt, kind: KindWork, now: float, decisions: Decisions) -> None:
        for item in kind.implied(attempt):
            number, cell_id = self._next_number(item), item.key.cell_id
            final = driver_attempts.pruned(item.cell, cell_id, number, attempt, item.seconds, now)
            self._close(kind, item, final, decisions)

    def _next_number(self, item: WorkItem) -> int:
        return self.outcomes.history(item.key).attempts + 1

    def _close(self, kind: KindWork, item: WorkItem, final: Attempt, decisions: Decisions) -> None:
        """End what waits, without a device."""
        kind.queue.remove(item.key)
        self.outcomes.note(item.key, self.outcomes.history(item.key), final)
        decisions.closed.append(item.key)
        self._record(decisions, None, final, kind.device, final=True)

    def _record(
        self, decisions: Decisions, slot: SlotId | None, attempt: Attempt, device: Device, *, final: bool
    ) -> None:
        peak = self.estimates.peak(attempt.cell, device)
        decisions.records.append(Record(self.run_id, attempt, *(peak or (None, None))))
        decisions.news.append(CellFinished(slot, attempt, final))
