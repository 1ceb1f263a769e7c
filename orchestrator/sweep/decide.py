"""From attempts that came back to what must be journalled and what follows. Decides; the loop acts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.fleet import SlotId
from orchestrator.journal.record import Record
from orchestrator.sweep import driver_attempts
from orchestrator.sweep.in_flight import Loan
from orchestrator.sweep.outcomes import Ledger
from orchestrator.sweep.retry_policy import Blame, Limits, RetryHistory, Strikes, Verdict, judge
from orchestrator.sweep.work.item import Key, WorkItem
from orchestrator.sweep.work.kind_queue import Estimates, KindWork
from orchestrator.watch import CellFinished
from workers.attempt import Attempt, Device


@dataclass(frozen=True, slots=True)
class Returned:
    slot: SlotId
    loan: Loan
    attempt: Attempt
    blame: Blame = Blame.CELL


@dataclass(slots=True)
class Decisions:
    """`records` first, durably; then the rest. `settled`: items that have their outcome with this, spared ones too.
    `failing`: devices that are to be retired."""

    records: list[Record] = field(default_factory=list)
    news: list[CellFinished] = field(default_factory=list)
    requeue: list[tuple[WorkItem, RetryHistory]] = field(default_factory=list)
    finals: list[tuple[WorkItem, Attempt]] = field(default_factory=list)
    settled: list[Key] = field(default_factory=list)
    failing: list[tuple[SlotId, Device]] = field(default_factory=list)

    def add(
        self, run_id: str, slot: SlotId | None, attempt: Attempt, peak: int | None, *, final: bool
    ) -> None:
        self.records.append(Record(run_id, attempt, peak))
        self.news.append(CellFinished(slot, attempt, final))


@dataclass(frozen=True, slots=True)
class Settler:
    """Notes every decision in the ledger at once, so that attempts of one batch see each other's."""

    run_id: str
    ledger: Ledger
    kinds: Mapping[str, KindWork]
    limits: Limits
    strikes: Strikes
    estimates: Estimates

    def settle(self, returned: Iterable[Returned], now: float) -> Decisions:
        result = Decisions()
        for back in returned:
            item, attempt = back.loan.item, back.attempt
            history, verdict = judge(self.ledger.history(item.key), attempt, back.blame, self.limits)
            peak = self.estimates.peak_bytes(item.cell, back.loan.device)
            result.add(self.run_id, back.slot, attempt, peak, final=verdict is Verdict.FINAL)
            if self.strikes.note(item.key, attempt, back.blame):
                result.failing.append((back.slot, back.loan.device))
            if verdict is Verdict.RETRY:
                self.ledger.note(item.key, history, None)
                result.requeue.append((item, history))
                continue
            final = attempt
            if verdict is Verdict.QUARANTINE:
                number = history.attempts + 1
                final = driver_attempts.quarantined(attempt, item.key.cell_id, number, history.crashes, now)
                result.add(self.run_id, None, final, peak, final=True)
            self.ledger.note(item.key, history, final)
            result.finals.append((item, final))
            result.settled.append(item.key)
            self._prune(attempt, item, now, result)
        return result

    def undo(self, result: Decisions) -> int:
        """`result` could not be recorded: how many items are without an outcome for it."""
        for key in result.settled:
            self.ledger.forget(key)
        return len(result.settled) + len(result.requeue)

    def _prune(self, attempt: Attempt, item: WorkItem, now: float, result: Decisions) -> None:
        if not attempt.outcome.is_device_oom:
            return
        kind = self.kinds[item.key.device_kind]
        for spared in kind.implied(attempt):
            kind.queue.remove(spared.key)
            history = self.ledger.history(spared.key)
            number, cell_id = history.attempts + 1, spared.key.cell_id
            verdict = driver_attempts.pruned(spared.cell, cell_id, number, attempt, spared.seconds, now)
            self.ledger.note(spared.key, history, verdict)
            result.settled.append(spared.key)
            peak = self.estimates.peak_bytes(spared.cell, kind.device)
            result.add(self.run_id, None, verdict, peak, final=True)
