"""Implements the fleet on Ray: one actor per device, one call in flight per actor. Every fault becomes an event.

Slot states: STARTING -> IDLE -> RUNNING -> IDLE | BACKOFF | GONE. The device host inside the actor checks the device
before it hands an attempt back and before it describes itself, so an idle slot is a clean one.
Ray neither restarts nor retries anything here: both would hide the cause. Written for Ray 2.60.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.fleet import AttemptReturned, FleetEvent, Progressed, SlotId, SlotLost, SlotReady
from orchestrator.fleet.autoscaling import Placeholders
from orchestrator.fleet.launch import launched
from orchestrator.fleet.nodes import NodeList, Nodes
from orchestrator.fleet.progress_board import start_board
from orchestrator.fleet.slots import Placement, has_gpu, name_nodes, placements
from workers.attempt import Attempt, Device
from workers.cause import cause, cause_first
from workers.cell import Lease
from workers.modes.installed import carried

_REFRESH_S = 10.0
_START_LIMIT_S = 120.0  # an infeasible actor pends for ever
_DEADLINE_GRACE_S = 60.0  # the device host ends a late child itself; this is for a host that no longer does
_MAX_FAILED_STARTS = 3
_START_BACKOFF_S = 5.0
_SUSPECT_NODE_S = 30.0  # a node whose raylet died still reads alive for 14 to 25 s
_PROGRESS_S = 1.0
_MAX_REASON = 2000
_NODE_ERRORS = (ActorUnavailableError, ActorUnschedulableError, NodeDiedError)


class _State(Enum):
    STARTING = auto()
    IDLE = auto()
    RUNNING = auto()
    BACKOFF = auto()
    RELEASED = auto()
    GONE = auto()  # retired, given up, or of a kind that nobody asked for


@dataclass
class _Slot:
    placement: Placement
    state: _State = _State.BACKOFF
    handle: Any = None
    ref: Any = None
    device: Device | None = None
    lease: Lease | None = None
    deadline: float = 0.0  # STARTING, RUNNING: when to give up; BACKOFF: when to start
    failed_starts: int = 0
    excluded: bool = field(default=False)  # its device is not of an allowed kind
    why_not_started: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """`kinds`: substrings of device names to use, None = all. `cpu_slots`: per node, where CPUs serve at all.
    `max_devices`: held at a time, in the whole cluster; None = all."""

    run_id: str
    kinds: Sequence[str] | None = None
    cpu_slots: int | None = None
    max_devices: int | None = None
    start_limit_s: float = _START_LIMIT_S
    start_backoff_s: float = _START_BACKOFF_S
    deadline_grace_s: float = _DEADLINE_GRACE_S
    refresh_s: float = _REFRESH_S
    suspect_node_s: float = _SUSPECT_NODE_S


class RayFleet:
    """Implements `orchestrator.fleet.Fleet` on the Ray that this process is connected to.

    `actor_class`: what lives on each device, `workers.actor.DeviceActor` or one with its three methods.
    """

    def __init__(
        self, options: FleetOptions, actor_class: type, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._actor_class = ray.remote(launched(actor_class))
        self._clock = clock
        self._slots: dict[SlotId, _Slot] = {}
        self._found: dict[SlotId, Placement] = {}
        self._by_ref: dict[Any, SlotId] = {}
        self._names: dict[str, str] = {}
        self._serial = itertools.count()
        self._demand = 0
        self._placeholders = Placeholders()
        self._nodes = NodeList(options.refresh_s)
        self._arriving = False
        self._board = start_board(options.run_id)
        self._news: Any = None
        self._next_news = 0.0
        self._with_cpu = options.kinds is not None and _asks_for("cpu", options.kinds)

    # -- the seam ---------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float, linger_s: float = 0.0) -> list[FleetEvent]:
        now = self._clock()
        if self._placeholders.found_new_node(set(self._names), now):
            self._nodes.hurry()
            self._arriving = True
        if (nodes := self._nodes.news()) is not None:
            self._find_placements(nodes)
            self._arriving = False
        self._take_slots()
        events = self._expire(now)
        self._start_due(now)
        if not self._arriving:  # what a placeholder found is lacking no more, though it has no slot yet
            self._placeholders.keep(self._lacking(), now)
        refs = list(self._by_ref)
        if refs:
            ready, rest = ray.wait(refs, num_returns=1, timeout=0 if events else timeout_s)
            if ready and linger_s:
                time.sleep(linger_s)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for ref in ready:
                events += self._collect(ref)
        elif not events:
            time.sleep(min(timeout_s, 0.2))
        return events + self._read_board()

    def submit(self, slot: SlotId, lease: Lease) -> None:
        entry = self._slots[slot]
        if entry.state is not _State.IDLE:
            raise ValueError(f"{slot} is {entry.state.name.lower()}, not idle")
        cell = lease.cell
        name = f"{cell.mode} {cell.engine} {cell.length} #{cell.repeat} {cell.cell_id}"
        self._track(entry, _State.RUNNING, entry.handle.run.options(name=name).remote(lease))
        entry.lease = lease
        entry.deadline = self._clock() + lease.time_limit_s + self._options.deadline_grace_s

    def demand(self, devices: int) -> None:
        self._demand = devices

    def release(self, slot: SlotId) -> None:
        self._drop(self._slots[slot], _State.RELEASED)

    def recall(self) -> None:
        free = self._most() - self._held()
        for entry in self._slots.values():
            if entry.state is _State.RELEASED and free > 0:
                entry.state, entry.deadline = _State.BACKOFF, 0.0
                free -= 1

    def retire(self, slot: SlotId, reason: str) -> None:
        self._drop(self._slots[slot], _State.GONE)

    def starting(self) -> int:
        return sum(entry.state in (_State.STARTING, _State.BACKOFF) for entry in self._slots.values())

    def undescribed(self) -> int:
        return sum(
            entry.device is None and entry.state in (_State.STARTING, _State.BACKOFF)
            for entry in self._slots.values()
        )

    def waiting_for(self) -> str | None:
        if any(entry.state in (_State.IDLE, _State.RUNNING) for entry in self._slots.values()):
            return None
        if starting := self.starting():
            return f"{starting} device(s) to start"
        wanted = "no device" if self._options.kinds is None else f"no {' or '.join(self._options.kinds)}"
        other = sorted(
            {entry.device.kind for entry in self._slots.values() if entry.excluded and entry.device}
        )
        others = f", only {', '.join(other)}" if other else ""
        return f"{wanted} in the cluster{others}{self._say_what_did_not_start()}"

    def _say_what_did_not_start(self) -> str:
        reasons = {
            slot: entry.why_not_started for slot, entry in self._slots.items() if entry.why_not_started
        }
        if not reasons:
            return ""
        slot, reason = next(iter(reasons.items()))
        return f"; {len(reasons)} did not start, {slot}: {reason}"

    def close(self) -> None:
        self._nodes.close()
        for entry in self._slots.values():
            self._drop(entry, _State.GONE)
        self._placeholders.close()
        ray.kill(self._board, no_restart=True)

    # -- slots and actors -------------------------------------------------------------------------------------

    def _find_placements(self, nodes: Nodes) -> None:
        self._names = name_nodes(nodes, self._names)
        if self._options.kinds is None and all(entry.device is None for entry in self._slots.values()):
            # Fixed by the first device: a sweep on GPUs does not continue on CPUs when the GPUs are taken away.
            self._with_cpu = not has_gpu(nodes)
        self._found = placements(
            nodes, self._names, with_cpu=self._with_cpu, cpu_slots=self._options.cpu_slots
        )
        for name, entry in list(self._slots.items()):
            if name not in self._found and entry.state in (_State.BACKOFF, _State.RELEASED):
                del self._slots[name]

    def _take_slots(self) -> None:
        """Take what was found, as far as it may be. One that is gone makes room for another."""
        free = self._most() - self._held() - self._resting()
        for name, placement in self._found.items():
            if name not in self._slots and free > 0:
                self._slots[name] = _Slot(placement)
                free -= 1

    def _most(self) -> float:
        return float("inf") if self._options.max_devices is None else self._options.max_devices

    def _held(self) -> int:
        return sum(entry.state not in (_State.RELEASED, _State.GONE) for entry in self._slots.values())

    def _resting(self) -> int:
        """Released devices keep their place, unless a kind that was named is still to be found behind them."""
        seen = [entry.device.kind for entry in self._slots.values() if entry.device is not None]
        if any(not any(_asks_for(kind, [name]) for kind in seen) for name in self._options.kinds or ()):
            return 0
        return sum(entry.state is _State.RELEASED for entry in self._slots.values())

    def _lacking(self) -> int:
        """Return how many devices new nodes could add. CPU slots are no reason to ask for nodes."""
        here = [entry for entry in self._slots.values() if entry.state is not _State.GONE]
        if any(not entry.placement.gpu or entry.state is _State.BACKOFF for entry in here):
            return 0
        return int(max(0, min(self._demand, self._most()) - len(here)))

    def _start_due(self, now: float) -> None:
        for name, entry in self._slots.items():
            if entry.state is _State.BACKOFF and now >= entry.deadline and not self._waits_for_first(entry):
                self._start(name, entry)

    def _waits_for_first(self, entry: _Slot) -> bool:
        """The CPU slots of a node share its cores: where all warmed up at once, the first cell would wait for all."""
        if entry.placement.gpu:
            return False
        here = [
            other
            for other in self._slots.values()
            if other.placement.node_id == entry.placement.node_id and not other.placement.gpu
        ]
        is_warming = any(other.state is _State.STARTING for other in here)
        return is_warming and all(other.device is None for other in here)

    def _start(self, name: SlotId, entry: _Slot) -> None:
        placement = entry.placement
        options = {
            "num_cpus": 0 if placement.gpu else 1,
            "num_gpus": 1 if placement.gpu else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            # Names must be unique for as long as Ray remembers the dead.
            "name": f"oomline {self._options.run_id} {name} {next(self._serial)}",
            "scheduling_strategy": NodeAffinitySchedulingStrategy(placement.node_id, soft=False),
        }
        if entry_points := carried():
            options["runtime_env"] = {"env_vars": dict(entry_points)}
        entry.handle = self._actor_class.options(**options).remote(
            name, placement.cpu_total_bytes, self._board
        )
        self._track(entry, _State.STARTING, entry.handle.describe.remote())
        entry.deadline = self._clock() + self._options.start_limit_s

    def _track(self, entry: _Slot, state: _State, ref: Any) -> None:
        entry.state, entry.ref = state, ref
        self._by_ref[ref] = entry.placement.slot

    def _drop(self, entry: _Slot, state: _State) -> None:
        """Kill the actor, and with it its child."""
        if entry.ref is not None:
            self._by_ref.pop(entry.ref, None)
        if entry.handle is not None:
            ray.kill(entry.handle, no_restart=True)
        entry.handle = entry.ref = entry.lease = None
        entry.state = state

    # -- what comes back --------------------------------------------------------------------------------------

    def _collect(self, ref: Any) -> list[FleetEvent]:
        name = self._by_ref.pop(ref)
        entry = self._slots[name]
        entry.ref = None
        try:
            value: Device | Attempt = ray.get(ref)
        except RayError as error:
            return [self._lost(name, entry, error)]
        if isinstance(value, Device):
            return self._described(name, entry, value)
        assert entry.device is not None
        entry.lease, entry.failed_starts = None, 0
        if value.device_dirty is not None:
            # A fresh actor proves the device clean before it takes a lease, or fails to start.
            lost = self._lose(name, entry, f"not clean after a cell: {value.device_dirty}", 0.0)
            return [AttemptReturned(name, value), lost]
        entry.state = _State.IDLE
        return [AttemptReturned(name, value), SlotReady(name, entry.device)]

    def _described(self, name: SlotId, entry: _Slot, device: Device) -> list[FleetEvent]:
        entry.device, entry.why_not_started = device, None
        kinds = self._options.kinds
        if kinds is not None and not _asks_for(device.kind, kinds):
            entry.excluded = True
            self._drop(entry, _State.GONE)
            return []
        entry.state = _State.IDLE
        return [SlotReady(name, device)]

    def _expire(self, now: float) -> list[FleetEvent]:
        events: list[FleetEvent] = []
        for name, entry in self._slots.items():
            if entry.state in (_State.STARTING, _State.RUNNING) and now >= entry.deadline:
                doing = "start" if entry.state is _State.STARTING else "hand back its attempt"
                events.append(self._lose(name, entry, f"the actor did not {doing} in time", 0.0))
        return events

    def _lost(self, name: SlotId, entry: _Slot, error: RayError) -> SlotLost:
        told = f"{type(error).__name__}: {_without_names(error)}"
        reason = cause_first(told)[:_MAX_REASON]
        if entry.state is _State.STARTING:
            entry.why_not_started = cause(told)[:_MAX_REASON]
        node_lost = isinstance(error, ActorUnavailableError | NodeDiedError) or "node died" in reason.lower()
        return self._lose(
            name,
            entry,
            reason,
            self._options.suspect_node_s if node_lost else 0.0,
            host_oom_victim=isinstance(error, OutOfMemoryError),
            preempted=isinstance(error, RayActorError) and error.preempted,
            node_lost=node_lost,
        )

    def _lose(
        self,
        name: SlotId,
        entry: _Slot,
        reason: str,
        backoff_s: float,
        *,
        host_oom_victim: bool = False,
        preempted: bool = False,
        node_lost: bool = False,
    ) -> SlotLost:
        lease, device = entry.lease, entry.device
        started = entry.state is not _State.STARTING
        entry.failed_starts = 0 if started or node_lost else entry.failed_starts + 1
        given_up = entry.failed_starts >= _MAX_FAILED_STARTS
        self._drop(entry, _State.GONE if given_up else _State.BACKOFF)
        entry.deadline = self._clock() + max(
            backoff_s, entry.failed_starts**2 * self._options.start_backoff_s
        )
        return SlotLost(name, lease, reason, device, host_oom_victim, preempted, node_lost, given_up)

    def _read_board(self) -> list[FleetEvent]:
        now = self._clock()
        if self._news is None:
            if now < self._next_news:
                return []
            self._next_news = now + _PROGRESS_S
            self._news = self._board.read.remote()
        ready, _ = ray.wait([self._news], timeout=0)
        if not ready:
            return []
        news, self._news = self._news, None
        try:
            latest = ray.get(news)
        except RayError:
            self._next_news = float("inf")  # the board is gone; only the news is lost with it
            return []
        return [
            Progressed(slot, progress)
            for slot, progress in latest.items()
            if (entry := self._slots.get(slot)) and entry.lease and entry.lease.lease_id == progress.lease_id
        ]


def _without_names(error: RayError) -> str:
    """Return Ray's message without the lines that only name the actor."""
    return "\n".join(line for line in str(error).splitlines() if not line.startswith("\t"))


def _asks_for(kind: str, kinds: Sequence[str]) -> bool:
    return any(wanted.lower() in kind.lower() for wanted in kinds)
