"""The driver's loop: one thread that lends cells to devices, journals what comes back, and decides what is next.

Cells wait here, never in Ray. An attempt is in the journal before anything follows from it: before its device gets
the next cell, before a retry, before a watcher hears of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.boundary.question import Question
from orchestrator.fleet import Finished, Fleet, FleetEvent, Progressed, SlotId, SlotLost, SlotReady
from orchestrator.journal.errors import JournalFull, LockLost, StoreError
from orchestrator.journal.record import Record
from orchestrator.spec import SweepSpec
from orchestrator.sweep import driver_attempts
from orchestrator.sweep.decide import Returned, Settler
from orchestrator.sweep.in_flight import Loan, Loans
from orchestrator.sweep.outcomes import Ledger
from orchestrator.sweep.pace import Pace
from orchestrator.sweep.retry_policy import Blame, Limits, Strikes
from orchestrator.sweep.summary import Summary
from orchestrator.sweep.time_limits import lease_for
from orchestrator.sweep.work.item import Key, WorkItem
from orchestrator.sweep.work.kind_queue import Estimates, KindWork
from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    Notice,
    SweepStarted,
    Tick,
    Watcher,
)
from workers.attempt import Attempt, Device
from workers.cell import Cell
from workers.outcome import Outcome

_TICK_S = 0.25  # how late a signal may be noticed; what follows must fit 2.5 s
_RELEASE_IDLE_S = 30.0
_WARM_MODELS = 2  # per node


class Journal(Protocol):
    def append(self, records: Sequence[Record]) -> None:
        """Durable on return."""


class JournalBroken(Exception):
    """Nothing more can be put on record (full disk, lost lock, lost store): the sweep has to end here."""


class Sweep:
    """`stop`: asked once a round; a text means: end now, journal what was in flight as cancelled.

    `clock`: seconds since the epoch; the fleet's `poll` is what lets it go on.
    """

    def __init__(
        self,
        *,
        spec: SweepSpec,
        cells: Sequence[Cell],
        questions: Sequence[Question],
        run_id: str,
        fleet: Fleet,
        journal: Journal,
        history: Sequence[Attempt],
        estimates: Estimates,
        watcher: Watcher,
        stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec, self._cells, self._questions, self._run_id = spec, cells, questions, run_id
        self._fleet, self._journal, self._estimates, self._watcher = fleet, journal, estimates, watcher
        self._stop, self._clock = stop, clock
        self._limits = Limits.of(spec)
        self.ledger = Ledger(history, self._limits)
        self.kinds: dict[str, KindWork] = {}
        self._running = Loans()
        self._idle: dict[SlotId, tuple[Device, float]] = {}
        self._shared: set[str] = set()  # leases that had a neighbour on their node at some time
        self._released: dict[SlotId, str] = {}
        self._retired: set[str] = set()
        self._settler = Settler(
            run_id, self.ledger, self.kinds, self._limits, Strikes(self._limits.strikes), estimates
        )
        self._held: dict[str, Key] = {}  # nodes that are being emptied for, or run, a cell that must be alone
        self._warm: dict[str, list[str]] = {}
        self._began = clock()
        self._next_tick = 0.0
        self._pace = Pace()
        self._stopped = False
        self._unrecorded = 0
        self._broken_starts = 0
        self._lack: str | None = None
        self.troubles: list[str] = []  # why work was left undone

    def run(self) -> None:
        """Until everything has an outcome, no device is left, or `stop` says so. The caller closes the fleet.

        Raises `JournalBroken`.
        """
        self._watcher.see(
            SweepStarted(
                run_id=self._run_id,
                name=self._spec.name,
                cells=len(self._cells),
                searches=len(self._questions),
                reused=self.ledger.reused,
            )
        )
        while not self._ended():
            if reason := self._stop():
                self._cancel(reason)
                return
            self._take(self._fleet.poll(_TICK_S, self._pace.linger_s(len(self._running))))
            self._dispatch()
            self._tick()

    def summary(self) -> Summary:
        known = sum(len(kind.queue) + kind.searching.active() for kind in self.kinds.values())
        never_seen = len(self._missing_kinds()) * (len(self._cells) + len(self._questions))
        return Summary(
            run_id=self._run_id,
            computed=self.ledger.computed,
            reused=self.ledger.reused,
            left=known + len(self._running) + never_seen + self._unrecorded,
            outcomes=dict(self.ledger.outcomes),
            troubles=tuple(self.troubles),
            stopped=self._stopped,
        )

    # -- what the fleet says ----------------------------------------------------------------------------------

    def _take(self, events: list[FleetEvent]) -> None:
        settled: list[Returned] = []
        for event in events:
            match event:
                case Progressed():
                    self._watcher.see(CellProgressed(event.slot, event.progress))
                case Finished():
                    settled += self._came_back(event)
                case SlotLost():
                    settled += self._lost(event)
                case SlotReady():
                    pass
        if settled:
            self._settle(settled)
        for event in events:
            if isinstance(event, SlotReady):
                self._ready(event.slot, event.device)

    def _ready(self, slot: SlotId, device: Device) -> None:
        if device.uuid in self._retired:
            self._fleet.retire(slot, "retired before")
            return
        if device.kind not in self.kinds:
            self.kinds[device.kind] = KindWork(
                device, self._cells, self._questions, self.ledger, self._estimates, self._clock()
            )
        kind = self.kinds[device.kind]
        kind.given_up = False
        if slot not in kind.slots:
            self._watcher.see(DeviceJoined(slot, device))
        kind.slots[slot], kind.absent_since = device, None
        self._idle[slot] = device, self._clock()

    def _came_back(self, event: Finished) -> list[Returned]:
        loan = self._running.get(event.slot)
        if loan is None or loan.lease.lease_id != event.attempt.lease_id:
            self._record([Record(self._run_id, event.attempt)])
            self._watcher.see(
                Notice(f"a late result of lease {event.attempt.lease_id}: recorded as a duplicate")
            )
            return []
        self._running.take_back(event.slot)
        return [Returned(event.slot, loan, event.attempt)]

    def _lost(self, event: SlotLost) -> list[Returned]:
        self._idle.pop(event.slot, None)
        self._released.pop(event.slot, None)
        for kind in self.kinds.values():
            if kind.slots.pop(event.slot, None) is not None and not kind.slots:
                kind.absent_since = self._clock()
        if event.device is not None and not self._lives(event.device.node):
            self._held.pop(event.device.node, None)
        self._broken_starts += event.gone_for_good
        self._watcher.see(DeviceLost(event.slot, event.device, event.reason, event.gone_for_good))
        loan = self._running.take_back(event.slot)
        if loan is None:
            return []
        outcome, blame = Outcome.INFRA_ERROR, Blame.CELL
        if event.node_lost or event.preempted:
            blame = Blame.NODE
        elif event.host_oom_victim:
            if loan.lease.lease_id not in self._shared:
                outcome = Outcome.OOM_HOST
            else:
                blame = Blame.MEMORY
        attempt = driver_attempts.lost(
            loan.lease, loan.device, outcome, event.reason, loan.started_at, self._clock()
        )
        return [Returned(event.slot, loan, attempt, blame)]

    def _lives(self, node: str) -> bool:
        return any(device.node == node for kind in self.kinds.values() for device in kind.slots.values())

    def _busy(self, node: str) -> bool:
        return bool(self._running.leases_on(node))

    def _record(self, records: Sequence[Record]) -> None:
        try:
            self._journal.append(records)
        except (JournalFull, LockLost, StoreError, OSError) as error:
            raise JournalBroken(str(error)) from error

    # -- what follows from it ---------------------------------------------------------------------------------

    def _settle(self, returned: list[Returned]) -> None:
        result = self._settler.settle(returned, self._clock())
        try:
            self._record(result.records)
        except JournalBroken:
            self._unrecorded = self._settler.undo(result)
            raise
        for back in returned:
            self._pace.note(back.attempt.duration_s, back.loan.item.seconds)
            self._shared.discard(back.loan.lease.lease_id)
            if self._held.get(back.loan.device.node) == back.loan.item.key:
                del self._held[back.loan.device.node]
        for item, history in result.requeue:
            self.kinds[item.key.device_kind].requeue(item, history)
        for item, final in result.finals:
            self.kinds[item.key.device_kind].settle(item.key, final)
        for slot, device in result.failing:
            self._retire(slot, device)
        for event in result.news:
            self._watcher.see(event)

    def _retire(self, slot: SlotId, device: Device) -> None:
        self._retired.add(device.uuid)
        reason = f"{self._limits.strikes} different cells in a row failed on {device.uuid}: device retired"
        self.troubles.append(reason)
        kind = self.kinds[device.kind]
        if kind.slots.pop(slot, None) is not None:
            self._fleet.retire(slot, reason)
            if not kind.slots:
                kind.absent_since = self._clock()
        self._watcher.see(DeviceLost(slot, device, reason, True))

    # -- lending ----------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        for kind in self.kinds.values():
            idle = [slot for slot in self._idle if slot in kind.slots]
            if idle and kind.searching.active():
                kind.refill(len(idle))
            if len(kind.queue) and len(idle) < len(kind.queue) and kind.kind in self._released.values():
                self._released.clear()
                self._fleet.recall()
            for slot in idle:
                if not len(kind.queue):
                    break
                device, _ = self._idle[slot]
                item = self._choose(kind, device)
                if item is not None:
                    self._lend(slot, device, item)

    def _let_go(self, now: float) -> None:
        """Devices that nothing is left for: their nodes may scale down."""
        for slot, (device, since) in list(self._idle.items()):
            kind = self.kinds[device.kind]
            if not kind.idle_work and now - since > _RELEASE_IDLE_S:
                del self._idle[slot], kind.slots[slot]
                self._released[slot] = kind.kind
                self._fleet.release(slot)
                self._watcher.see(DeviceLost(slot, device, "let go: nothing is left for it", False))

    def _choose(self, kind: KindWork, device: Device) -> WorkItem | None:
        lonely = kind.queue.alone()
        if lonely is not None and lonely.key not in self._held.values():
            self._held.setdefault(device.node, lonely.key)
        if device.node in self._held:
            if lonely is None or self._held[device.node] != lonely.key or self._busy(device.node):
                return None
            return kind.queue.remove(lonely.key)
        return kind.queue.take(
            device, warm=self._warm.get(device.node, ()), devices=len(kind.slots), elsewhere=kind.elsewhere
        )

    def _lend(self, slot: SlotId, device: Device, item: WorkItem) -> None:
        step_s = self._estimates.step_seconds(item.cell, device)
        lease = lease_for(item, self.ledger.history(item.key).attempts + 1, step_s, self._spec)
        del self._idle[slot]
        self._running.lend(slot, Loan(item, lease, device, self._clock()))
        if len(together := self._running.leases_on(device.node)) > 1:
            self._shared.update(together)
        warm = [item.cell.model.target, *self._warm.get(device.node, ())]
        self._warm[device.node] = list(dict.fromkeys(warm))[:_WARM_MODELS]
        self._fleet.submit(slot, lease)
        self._watcher.see(CellStarted(slot, device, item.cell, lease.attempt))

    # -- the end ----------------------------------------------------------------------------------------------

    def _ended(self) -> bool:
        if self._running:
            return False
        waited = self._clock() - self._began
        busy = False
        for kind in self.kinds.values():
            if kind.given_up or not kind.idle_work:
                continue
            if kind.slots or self._fleet.starting():
                busy = True
            elif self._hopeless(kind):
                kind.given_up = True
                self._trouble(f"no {kind.kind} device is left: {len(kind.queue)} cells without an outcome")
            else:
                busy = True
        if busy or self._fleet.undescribed():
            return False
        missing = self._missing_kinds()
        none_starts = not self.kinds and self._broken_starts and not self._fleet.starting()
        if missing and waited < self._spec.device_timeout_s and not none_starts:
            return False
        if missing:
            self._trouble(
                f"waited {waited:.0f} s: {self._fleet.waiting_for() or 'no device named ' + ', '.join(missing)}"
            )
        return True

    def _hopeless(self, kind: KindWork) -> bool:
        if kind.absent_since is None:
            return False
        all_retired = (
            bool(self._retired) and self._fleet.waiting_for() is not None and not self._fleet.starting()
        )
        return all_retired or self._clock() - kind.absent_since > self._spec.device_timeout_s

    def _missing_kinds(self) -> list[str]:
        if self._spec.devices is None:
            return [] if self.kinds else ["any kind"]
        return [
            name
            for name in self._spec.devices
            if not any(name.lower() in kind.lower() for kind in self.kinds)
        ]

    def _trouble(self, text: str) -> None:
        self.troubles.append(text)
        self._watcher.see(Notice(text))

    def _cancel(self, reason: str) -> None:
        attempts = {
            slot: driver_attempts.cancelled(loan.lease, loan.device, reason, loan.started_at, self._clock())
            for slot, loan in self._running.items()
        }
        if attempts:
            self._record([Record(self._run_id, attempt) for attempt in attempts.values()])
        for slot, attempt in attempts.items():
            self._watcher.see(CellFinished(slot, attempt, False))
        self._stopped = True
        self.troubles.append(reason)

    def _tick(self) -> None:
        now = self._clock()
        if now < self._next_tick:
            return
        self._next_tick = now + 1.0
        self._let_go(now)
        waiting = sum(len(kind.queue) for kind in self.kinds.values())
        self._fleet.demand(waiting + len(self._running) if self.kinds else len(self._cells))
        devices = sum(len(kind.slots) for kind in self.kinds.values())
        lack = self._fleet.waiting_for()
        if lack is not None and lack != self._lack:
            self._watcher.see(Notice(f"waiting: {lack}"))
        self._lack = lack
        queued = sum(kind.queue.seconds for kind in self.kinds.values())
        running = sum(
            max(0.0, loan.item.seconds - (now - loan.started_at)) for loan in self._running.values()
        )
        self._watcher.see(
            Tick(
                elapsed_s=now - self._began,
                queued=waiting,
                running=len(self._running),
                done=len(self.ledger.finals),
                devices=devices,
                searching=sum(kind.searching.active() for kind in self.kinds.values()),
                outcomes=dict(self.ledger.outcomes),
                eta_s=self._pace.eta_s(queued + running, devices),
            )
        )
