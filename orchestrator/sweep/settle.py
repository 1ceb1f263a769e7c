"""From attempts that came back to what must be journalled and what follows. Decides; the loop acts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.fleet import SlotId
from orchestrator.journal.record import Record
from orchestrator.sweep import verdicts
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.loans import Loan
from orchestrator.sweep.policy import Blame, Limits, Standing, Strikes, Verdict, judge
from orchestrator.sweep.work.item import Key, WorkItem
from orchestrator.sweep.work.kind import Estimates, KindWork
from orchestrator.watch import CellFinished
from workers.attempt import Attempt, Device


@dataclass(frozen=True, slots=True)
class Returned:
    slot: SlotId
    loan: Loan
    attempt: Attempt
    blame: Blame = Blame.CELL


@dataclass(slots=True)
class Consequences:
    """`records` first, durably; then the rest. `settled`: items that have their outcome with this, spared ones too.
    `failing`: devices that are to be retired."""

    records: list[Record] = field(default_factory=list)
    news: list[CellFinished] = field(default_factory=list)
    requeue: list[tuple[WorkItem, Standing]] = field(default_factory=list)
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

    def settle(self, returned: Iterable[Returned], now: float) -> Consequences:
        result = Consequences()
        for back in returned:
            item, attempt = back.loan.item, back.attempt
            standing, verdict = judge(self.ledger.standing(item.key), attempt, back.blame, self.limits)
            peak = self.estimates.peak_bytes(item.cell, back.loan.device)
            result.add(self.run_id, back.slot, attempt, peak, final=verdict is Verdict.FINAL)
            if self.strikes.note(item.key, attempt, back.blame):
                result.failing.append((back.slot, back.loan.device))
            if verdict is Verdict.RETRY:
                self.ledger.note(item.key, standing, None)
                result.requeue.append((item, standing))
                continue
            final = attempt
            if verdict is Verdict.QUARANTINE:
                number = standing.attempts + 1
                final = verdicts.quarantined(attempt, item.key.cell_id, number, standing.crashes, now)
                result.add(self.run_id, None, final, peak, final=True)
            self.ledger.note(item.key, standing, final)
            result.finals.append((item, final))
            result.settled.append(item.key)
            self._prune(attempt, item, now, result)
        return result

    def undo(self, result: Consequences) -> int:
        """`result` could not be recorded: how many items are without an outcome for it."""
        for key in result.settled:
            self.ledger.forget(key)
        return len(result.settled) + len(result.requeue)

    def _prune(self, attempt: Attempt, item: WorkItem, now: float, result: Consequences) -> None:
        if not attempt.outcome.is_device_oom:
            return
        kind = self.kinds[item.key.device_kind]
        for spared in kind.implied(attempt):
            kind.queue.remove(spared.key)
            standing = self.ledger.standing(spared.key)
            number, cell_id = standing.attempts + 1, spared.key.cell_id
            verdict = verdicts.pruned(spared.cell, cell_id, number, attempt, spared.seconds, now)
            self.ledger.note(spared.key, standing, verdict)
            result.settled.append(spared.key)
            peak = self.estimates.peak_bytes(spared.cell, kind.device)
            result.add(self.run_id, None, verdict, peak, final=True)
