"""A fleet without devices: a virtual clock, and a world that says what comes of a lease and how long it takes."""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence

from orchestrator.fleet import AttemptReturned, FleetEvent, SlotLost, SlotReady
from orchestrator.journal.record import Record
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.sweep.loop import Sweep
from orchestrator.watch import SweepEvent
from workers.attempt import Attempt, Device, Failure, Measured, Phase
from workers.cell import Cell, Lease
from workers.outcome import Outcome

GiB = 2**30


class SimulatedClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def device(name: str, kind: str = "H100", node: str = "node-0") -> Device:
    return Device(kind=kind, uuid=name, node=node, total_bytes=80 * GiB)


def attempt(
    lease: Lease,
    on: Device,
    outcome: Outcome = Outcome.OK,
    *,
    started_at: float,
    duration_s: float,
    **fields: object,
) -> Attempt:
    return Attempt(
        lease_id=lease.lease_id,
        cell=lease.cell,
        attempt=lease.attempt,
        outcome=outcome,
        phase=Phase.DONE if outcome is Outcome.OK else Phase.DECODE,
        device=on,
        started_at=started_at,
        duration_s=duration_s,
        failure=None
        if outcome is Outcome.OK
        else Failure(error_type="Simulated", error_message=str(outcome)),
        **fields,  # type: ignore[arg-type]
    )


@dataclasses.dataclass(frozen=True)
class Fate:
    """What comes of a lease. `lost`: no attempt comes back, the slot goes, and returns unless `gone`.

    `late`: of a lost lease the attempt comes back after all, so many seconds later.
    """

    duration_s: float = 10.0
    outcome: Outcome = Outcome.OK
    lost: bool = False
    gone: bool = False
    host_oom_victim: bool = False
    node_lost: bool = False
    oom_token_index: int | None = None
    tokens_per_s: float | None = None
    late: float | None = None
    culprit: str | None = None  # of several devices, the one that the attempt names; None: the one that leads


World = Callable[[Lease, Device], Fate]


class SimulatedFleet:
    def __init__(
        self, devices: Sequence[Device], world: World, clock: SimulatedClock, restart_s: float = 1.0
    ) -> None:
        self.world, self.clock, self.restart_s = world, clock, restart_s
        self.devices = {one.uuid: one for one in devices}
        self.retired: list[str] = []
        self.released: list[str] = []
        self.leases: list[tuple[str, Lease, float]] = []
        self.groups: list[tuple[tuple[str, ...], float, float]] = []  # slots, from, to
        self._serial = itertools.count()
        self._events: list[tuple[float, int, FleetEvent]] = []
        self._coming = set(self.devices)
        self._live: set[str] = set()
        for one in devices:
            self._at(clock.now, SlotReady(one.uuid, one))

    def join(self, one: Device, at: float) -> None:
        self.devices[one.uuid] = one
        self._at(at, SlotReady(one.uuid, one))

    def leave(self, one: Device, at: float) -> None:
        """While it is idle."""
        self._at(at, SlotLost(one.uuid, None, "simulated", one))

    def poll(self, timeout_s: float, linger_s: float = 0.0) -> list[FleetEvent]:
        until = self.clock.now + timeout_s
        if not self._events or self._events[0][0] > until:
            self.clock.now = until
            return []
        self.clock.now = max(self.clock.now, self._events[0][0]) + linger_s
        events: list[FleetEvent] = []
        while self._events and self._events[0][0] <= self.clock.now:
            event = heapq.heappop(self._events)[2]
            if event.slot in self.retired:
                continue
            if isinstance(event, SlotReady):
                self._coming.discard(event.slot)
                self._live.add(event.slot)
            elif isinstance(event, SlotLost):
                self._live.discard(event.slot)
            events.append(event)
        return events

    def submit(self, slots: Sequence[str], lease: Lease) -> None:
        slot = slots[0]
        on = self.devices[slot]
        fate = self.world(lease, on)
        began, ends = self.clock.now, self.clock.now + fate.duration_s
        self.leases.append((slot, lease, began))
        self.groups.append((tuple(slots), began, ends))
        for other in slots[1:]:
            self._at(ends, SlotReady(other, self.devices[other]))
        if fate.lost:
            self._at(
                ends,
                SlotLost(
                    slot,
                    lease,
                    "simulated",
                    on,
                    host_oom_victim=fate.host_oom_victim,
                    node_lost=fate.node_lost,
                ),
            )
            if fate.late is not None:
                self._at(ends + fate.late, AttemptReturned(slot, self.attempt(lease, on, fate, began)))
            if not fate.gone:
                self._coming.add(slot)
                self._at(ends + self.restart_s, SlotReady(slot, on))
            return
        self._at(ends, AttemptReturned(slot, self.attempt(lease, on, fate, began)))
        self._at(ends, SlotReady(slot, on))

    def attempt(self, lease: Lease, on: Device, fate: Fate, began: float) -> Attempt:
        done = attempt(
            lease,
            self.devices[fate.culprit] if fate.culprit else on,
            fate.outcome,
            started_at=began,
            duration_s=fate.duration_s,
            measured=Measured(tokens_per_s=fate.tokens_per_s),
        )
        if fate.oom_token_index is None:
            return done
        failure = Failure(error_type="OOM", error_message="full", oom_token_index=fate.oom_token_index)
        return dataclasses.replace(done, failure=failure)

    def demand(self, devices: int) -> None:
        self.wanted = devices

    def release(self, slot: str) -> None:
        self.released.append(slot)
        self._live.discard(slot)

    def recall(self) -> None:
        for slot in self.released:
            self._coming.add(slot)
            self._at(self.clock.now, SlotReady(slot, self.devices[slot]))
        self.released.clear()

    def retire(self, slot: str, reason: str) -> None:
        self.retired += [] if slot in self.retired else [slot]
        self._live.discard(slot)
        self._coming.discard(slot)

    def starting(self) -> int:
        return len(self._coming)

    def undescribed(self) -> int:
        return 0 if self._live else len(self._coming)

    def waiting_for(self) -> str | None:
        return None if self._live else "no device in the simulation"

    def close(self) -> None:
        pass

    def _at(self, when: float, event: FleetEvent) -> None:
        heapq.heappush(self._events, (when, next(self._serial), event))


class MemoryJournal:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, records: Sequence[Record]) -> None:
        self.records += records

    @property
    def attempts(self) -> list[Attempt]:
        return [record.attempt for record in self.records]


class FlatEstimates:
    """Seconds proportional to the length; searches start from a fixed prediction."""

    def __init__(
        self, seconds: Callable[[Cell], float] = lambda cell: cell.length / 100, weights_bytes: int = 0
    ) -> None:
        self._seconds, self._weights_bytes = seconds, weights_bytes

    def seconds(self, cell: Cell, device: Device) -> float:
        return self._seconds(cell)

    def step_seconds(self, cell: Cell, device: Device) -> float:
        return 0.1

    def foresee(self, cell: Cell, device: Device) -> None: ...

    def peak(self, cell: Cell, device: Device) -> None:
        return None

    def bytes_too_large(self, cell: Cell) -> int | None:
        too_large = cell.budget is not None and self._weights_bytes > cell.budget
        return self._weights_bytes if too_large else None

    def start(self, question, device):  # type: ignore[no-untyped-def]
        from orchestrator.boundary.start import search_for

        return question, search_for(question, 1000)


class EventLog:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.events: list[SweepEvent] = []

    def see(self, event: SweepEvent) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


def spec(**fields: object) -> SweepSpec:
    base: dict[str, object] = {
        "name": "simulated",
        "models": [{"target": "pocket"}],
        "modes": ["baseline", "streaming"],
        "lengths": [1000, 2000],
        "device_timeout_s": 60,
    }
    return parse_spec(base | fields)


def simulate(
    sweep_spec: SweepSpec,
    cells: Sequence[Cell],
    devices: Sequence[Device],
    world: World = lambda lease, on: Fate(lease.cell.length / 100),
    *,
    history: Iterable[Attempt] = (),
    questions: Sequence[object] = (),
    estimates: FlatEstimates | None = None,
    stop: Callable[[], str | None] = lambda: None,
    prepare: Callable[[SimulatedFleet, SimulatedClock], None] = lambda fleet, clock: None,
    run: Callable[["Played"], object] = lambda played: played.sweep.run(),
) -> "Played":
    clock = SimulatedClock()
    fleet = SimulatedFleet(devices, world, clock)
    prepare(fleet, clock)
    journal, seen = MemoryJournal(), EventLog()
    sweep = Sweep(
        spec=sweep_spec,
        cells=cells,
        questions=questions,  # type: ignore[arg-type]
        run_id="run",
        fleet=fleet,
        journal=journal,
        history=list(history),
        estimates=estimates or FlatEstimates(),
        watcher=seen,
        stop=stop,
        clock=clock,
    )
    played = Played(sweep, fleet, journal, seen, clock)
    run(played)
    return played


@dataclasses.dataclass
class Played:
    sweep: Sweep
    fleet: SimulatedFleet
    journal: MemoryJournal
    seen: EventLog
    clock: SimulatedClock


def finals(played: Played) -> dict[tuple[str, str], Outcome]:
    """Last outcome by cell and kind; fails on a second final."""
    return {(a.cell.cell_id, a.device.kind): a.outcome for a in played.journal.attempts}
