"""The driver's loop: one thread that gives cells to devices, journals what comes back, and acts on what follows.

Cells wait here, never in Ray. An attempt is in the journal before anything follows from it: before its device gets
the next cell, before a retry, before a watcher hears of it.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from orchestrator.boundary.question import Question
from orchestrator.fleet import AttemptReturned, Fleet, FleetEvent, Progressed, SlotId, SlotLost, SlotReady
from orchestrator.journal.errors import JournalFull, LockLost, StoreError
from orchestrator.journal.record import Record
from orchestrator.spec import SweepSpec
from orchestrator.sweep import driver_attempts
from orchestrator.sweep.choosing import Chooser
from orchestrator.sweep.decide import Decider, Decisions
from orchestrator.sweep.ending import Ending
from orchestrator.sweep.in_flight import CellsInFlight, InFlight
from orchestrator.sweep.outcomes import Outcomes
from orchestrator.sweep.pace import Pace
from orchestrator.sweep.retry_policy import Blame, Limits, Strikes
from orchestrator.sweep.roster import IdleDevice, Roster
from orchestrator.sweep.summary import Summary
from orchestrator.sweep.time_limits import lease_for
from orchestrator.sweep.work.item import WorkItem
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

#: After Ray's memory monitor ended a cell, until its memory is free again: whatever starts on the node before is ended too,
#: and blamed.
_FREEING_S = 2.0
_TICK_S = 0.25  # how late a signal may be noticed; what follows must fit 2.5 s
_RELEASE_IDLE_S = 30.0


class AttemptLog(Protocol):
    def append(self, records: Sequence[Record]) -> None:
        """Durable on return."""


class JournalBroken(Exception):
    """Nothing more can be put on record (full disk, lost lock, lost store): the sweep has to end here."""


class Sweep:
    """`retry`: what ended so before is run again. `stop`: asked once a round. A text means: end now, and journal what
    is in flight as cancelled.

    `clock`: seconds since the epoch. Time passes while the fleet is polled.
    """

    def __init__(
        self,
        *,
        spec: SweepSpec,
        cells: Sequence[Cell],
        questions: Sequence[Question],
        run_id: str,
        fleet: Fleet,
        journal: AttemptLog,
        history: Sequence[Attempt],
        estimates: Estimates,
        watcher: Watcher,
        retry: Collection[Outcome] = frozenset(),
        stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec, self._cells, self._questions, self._run_id = spec, cells, questions, run_id
        self._fleet, self._journal, self._estimates, self._watcher = fleet, journal, estimates, watcher
        self._stop, self._clock, self._began = stop, clock, clock()
        limits = Limits.of(spec)
        self._outcomes = Outcomes(history, limits, retry)
        self.kinds: dict[str, KindWork] = {}
        self._roster = Roster()
        self._in_flight = CellsInFlight()
        self._chooser = Chooser(self._roster, self._in_flight, clock)
        strikes = Strikes(limits.strikes)
        self._decider = Decider(run_id, self._outcomes, self.kinds, limits, strikes, estimates)
        self._ending = Ending(spec, self.kinds, self._roster, fleet, self._began, self._notice)
        self._pace = Pace()
        self._next_tick = 0.0
        self._lack: str | None = None
        self._stopped = False
        self._unrecorded = 0

    def run(self) -> None:
        """Run until everything has an outcome, no device is left, or `stop` gives a reason. The caller closes the
        fleet.

        Raises `JournalBroken`.
        """
        self._watcher.see(
            SweepStarted(
                run_id=self._run_id,
                name=self._spec.name,
                cells=len(self._cells),
                searches=len(self._questions),
                reused=self._outcomes.reused,
                models=tuple(dict.fromkeys(cell.model for cell in self._cells)),
            )
        )
        while self._in_flight or not self._ending.has_come(self._clock()):
            if reason := self._stop():
                self._cancel(reason)
                return
            self._take(self._fleet.poll(_TICK_S, self._pace.linger_s(len(self._in_flight))))
            self._dispatch()
            self._tick()

    def summary(self) -> Summary:
        known = sum(len(kind.queue) + kind.searching.active() for kind in self.kinds.values())
        never_seen = len(self._ending.missing_kinds()) * (len(self._cells) + len(self._questions))
        return Summary(
            run_id=self._run_id,
            computed=self._outcomes.computed,
            reused=self._outcomes.reused,
            left=known + len(self._in_flight) + never_seen + self._unrecorded,
            outcomes=dict(self._outcomes.counts),
            troubles=(*self._ending.troubles, *self._outcomes.lacks()),
            stopped=self._stopped,
            unloadable=tuple(self._outcomes.unloadable()),
        )

    # -- what the fleet says ----------------------------------------------------------------------------------

    def _take(self, events: list[FleetEvent]) -> None:
        """Devices that are ready come last: an attempt is journalled before its device gets the next cell."""
        decisions = Decisions()
        for event in events:
            match event:
                case Progressed():
                    self._watcher.see(CellProgressed(event.slot, event.progress))
                case AttemptReturned():
                    self._came_back(event, decisions)
                case SlotLost():
                    self._lost(event, decisions)
                case SlotReady():
                    pass
        if decisions.records:
            self._act_on(decisions)
        for event in events:
            if isinstance(event, SlotReady):
                self._ready(event.slot, event.device)

    def _ready(self, slot: SlotId, device: Device) -> None:
        if self._roster.is_retired(device):
            self._fleet.retire(slot, "retired before")
            return
        if device.kind not in self.kinds:
            self.kinds[device.kind] = KindWork(
                device,
                self._cells,
                self._questions,
                self._outcomes,
                self._estimates,
                repeat_more=self._spec.repeats == "auto",
            )
            kind = self.kinds[device.kind]
            self._close_too_large(kind, list(kind.queue))
        self._ending.note_return(device.kind)
        if self._roster.join(slot, device, self._clock()):
            self._watcher.see(DeviceJoined(slot, device))

    def _came_back(self, event: AttemptReturned, decisions: Decisions) -> None:
        flight = self._in_flight.on(event.slot)
        if flight is None or flight.lease.lease_id != event.attempt.lease_id:
            self._decider.note_duplicate(event.attempt, decisions)
            return
        self._ended(flight, event.attempt, Blame.CELL, decisions)

    def _lost(self, event: SlotLost, decisions: Decisions) -> None:
        self._roster.leave(event.slot, event.device, self._clock())
        if event.gone_for_good:
            self._ending.note_broken_start()
        self._watcher.see(DeviceLost(event.slot, event.device, event.reason, event.gone_for_good))
        flight = self._in_flight.on(event.slot)
        if flight is None:
            return
        if event.host_oom_victim:
            self._chooser.keep_empty(flight.device.node, self._clock() + _FREEING_S)
        outcome, blame = Outcome.INFRA_ERROR, Blame.CELL
        if event.node_lost or event.preempted:
            blame = Blame.NODE
        elif event.host_oom_victim and flight.had_neighbour:
            blame = Blame.MEMORY
        elif event.host_oom_victim:
            outcome = Outcome.OOM_HOST
        attempt = driver_attempts.lost(
            flight.lease,
            event.device or flight.device,
            outcome,
            event.reason,
            flight.started_at,
            self._clock(),
        )
        self._ended(flight, attempt, blame, decisions)

    def _ended(self, flight: InFlight, attempt: Attempt, blame: Blame, decisions: Decisions) -> None:
        self._in_flight.remove(flight.slot)
        self._pace.note(attempt.duration_s, flight.item.seconds)
        self._decider.decide(flight, attempt, blame, self._clock(), decisions)

    # -- what follows from it ---------------------------------------------------------------------------------

    def _act_on(self, decisions: Decisions) -> None:
        try:
            self._record(decisions.records)
        except JournalBroken:
            self._unrecorded = self._decider.undo(decisions)
            raise
        for item, history in decisions.requeue:
            self.kinds[item.key.device_kind].requeue(item, history)
        for item, final in decisions.finals:
            self.kinds[item.key.device_kind].note_final(item.key, final)
        for slot, device in decisions.failing:
            self._retire(slot, device)
        for event in decisions.news:
            self._watcher.see(event)

    def _close_too_large(self, kind: KindWork, items: Sequence[WorkItem]) -> bool:
        """End those of `items`, which wait, that no device need run. Returns whether there are any."""
        decisions = Decisions()
        self._decider.close_too_large(kind, items, self._clock(), decisions)
        if decisions.records:
            self._act_on(decisions)
        return bool(decisions.records)

    def _record(self, records: Sequence[Record]) -> None:
        try:
            self._journal.append(records)
        except (JournalFull, LockLost, StoreError, OSError) as error:
            raise JournalBroken(str(error)) from error

    def _retire(self, slot: SlotId, device: Device) -> None:
        strikes = self._decider.strikes.limit
        reason = f"{strikes} different cells in a row failed on {device.uuid}: device retired"
        self._ending.troubles.append(reason)
        if self._roster.retire(slot, device, self._clock()):
            self._fleet.retire(slot, reason)
        self._watcher.see(DeviceLost(slot, device, reason, True))

    def _notice(self, text: str) -> None:
        self._watcher.see(Notice(text))

    # -- which cell runs where --------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        for kind in self.kinds.values():
            idle = self._roster.idle(kind.kind)
            while idle and kind.searching.active() and self._close_too_large(kind, kind.refill(len(idle))):
                pass  # the search goes on from what is known without a device
            if self._chooser.lacks_devices(kind) and self._roster.take_released(kind.kind):
                self._fleet.recall()
            for chosen, item in self._chooser.choices(kind):
                self._start(chosen, item)

    def _start(self, chosen: Sequence[IdleDevice], item: WorkItem) -> None:
        slots, devices = tuple(idle.slot for idle in chosen), tuple(idle.device for idle in chosen)
        slot, device = slots[0], devices[0]
        step_s = self._estimates.step_seconds(item.cell, device)
        lease = lease_for(item, self._outcomes.history(item.key).attempts + 1, step_s, self._spec)
        for idle in chosen:
            self._roster.start(idle, item.cell.model.target)
        self._in_flight.add(InFlight(slots, item, lease, devices, self._clock()))
        self._fleet.submit(slots, lease)
        self._estimates.foresee(item.cell, device)
        self._watcher.see(CellStarted(slot, device, item.cell, lease.attempt))

    def _release_idle(self, now: float) -> None:
        """Let devices go that nothing is left for: their nodes may scale down."""
        for idle in list(self._roster.all_idle()):
            if now - idle.since > _RELEASE_IDLE_S and self._chooser.is_of_no_use(
                self.kinds[idle.device.kind], idle.device
            ):
                self._roster.release(idle)
                self._fleet.release(idle.slot)
                self._watcher.see(DeviceLost(idle.slot, idle.device, "let go: nothing is left for it", False))

    def _close_unplaceable(self, now: float) -> None:
        """End the cells for more devices than any node has had for as long as a sweep waits for a device."""
        for kind in self.kinds.values():
            most = self._roster.largest_node(kind.kind)
            too_many = {size for size in kind.queue.sizes() if size > max(most, 1)}
            if self._ending.is_short_for_good(kind.kind, too_many, now):
                decisions = Decisions()
                self._decider.close_unplaceable(kind, too_many, most, now, decisions)
                self._act_on(decisions)

    # -- the end, and the totals once a second ----------------------------------------------------------------

    def _cancel(self, reason: str) -> None:
        attempts = {
            slot: driver_attempts.cancelled(
                flight.lease, flight.device, reason, flight.started_at, self._clock()
            )
            for slot, flight in self._in_flight.items()
        }
        if attempts:
            self._record([Record(self._run_id, attempt) for attempt in attempts.values()])
        for slot, attempt in attempts.items():
            self._watcher.see(CellFinished(slot, attempt, False))
        self._stopped = True
        self._ending.troubles.append(reason)

    def _tick(self) -> None:
        now = self._clock()
        if now < self._next_tick:
            return
        self._next_tick = now + 1.0
        self._release_idle(now)
        self._close_unplaceable(now)
        waiting = sum(len(kind.queue) for kind in self.kinds.values())
        self._fleet.demand(self._devices_wanted())
        lack = self._fleet.waiting_for()
        if lack is not None and lack != self._lack:
            self._notice(f"waiting: {lack}")
        self._lack = lack
        self._watcher.see(
            Tick(
                elapsed_s=now - self._began,
                queued=waiting,
                running=len(self._in_flight),
                done=len(self._outcomes.finals),
                devices=self._roster.count(),
                searching=sum(kind.searching.active() for kind in self.kinds.values()),
                outcomes=dict(self._outcomes.counts),
                eta_s=self._pace.eta_s(self._seconds_left(now), self._roster.count()),
            )
        )

    def _devices_wanted(self) -> int:
        """Return how many devices would run all at once that waits and that runs."""
        if not self.kinds:
            return sum(cell.devices for cell in self._cells)
        running = sum(len(flight.slots) for flight in self._in_flight.values())
        return running + sum(kind.queue.devices for kind in self.kinds.values())

    def _seconds_left(self, now: float) -> float:
        """Return the predicted device time of what waits and of what is in flight."""
        queued = sum(kind.queue.seconds for kind in self.kinds.values())
        flights = self._in_flight.values()
        return queued + sum(max(0.0, f.item.seconds - (now - f.started_at)) for f in flights)
