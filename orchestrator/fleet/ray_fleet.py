"""Implements the fleet on Ray: one actor per device, one call in flight per actor. Every fault becomes an event.

Slot states: STARTING -> IDLE -> RUNNING -> IDLE | BACKOFF | GONE. The device host inside the actor checks the device
before it hands an attempt back and before it describes itself, so an idle slot is a clean one.
Ray neither restarts nor retries anything here: both would hide the cause. Written for Ray 2.60.
"""

import itertools
import time
from collections.abc import Callable, Sequence
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
from orchestrator.fleet.groups import Groups
from orchestrator.fleet.launch import launched
from orchestrator.fleet.nodes import NodeList, Nodes
from orchestrator.fleet.progress_board import start_board
from orchestrator.fleet.slot_entry import FleetOptions, SlotEntry, SlotState
from orchestrator.fleet.slots import Placement, has_gpu, name_nodes, placements
from workers.attempt import Attempt, Device
from workers.cause import cause, cause_first
from workers.cell import Lease
from workers.modes.installed import carried

_MAX_FAILED_STARTS = 3
_PROGRESS_S = 1.0
_MAX_REASON = 2000
_NODE_ERRORS = (ActorUnavailableError, ActorUnschedulableError, NodeDiedError)


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
        self._slots: dict[SlotId, SlotEntry] = {}
        self._found: dict[SlotId, Placement] = {}
        self._by_ref: dict[Any, SlotId] = {}
        self._groups = Groups()
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

    def submit(self, slots: Sequence[SlotId], lease: Lease) -> None:
        for slot in slots:
            if (state := self._slots[slot].state) is not SlotState.IDLE:
                raise ValueError(f"{slot} is {state.name.lower()}, not idle")
        cell = lease.cell
        name = f"{cell.mode} {cell.engine} {cell.length} #{cell.repeat} {cell.cell_id}"
        group = self._groups.start(slots, lease)
        for slot in slots:
            entry = self._slots[slot]
            call = entry.handle.run.options(name=name)
            self._track(entry, SlotState.RUNNING, call.remote(lease, group.ranks(slot)))
            entry.lease = lease
            entry.deadline = self._clock() + lease.time_limit_s + self._options.deadline_grace_s

    def demand(self, devices: int) -> None:
        self._demand = devices

    def release(self, slot: SlotId) -> None:
        self._drop(self._slots[slot], SlotState.RELEASED)

    def recall(self) -> None:
        free = self._most() - self._held()
        for entry in self._slots.values():
            if entry.state is SlotState.RELEASED and free > 0:
                entry.state, entry.deadline = SlotState.BACKOFF, 0.0
                free -= 1

    def retire(self, slot: SlotId, reason: str) -> None:
        self._drop(self._slots[slot], SlotState.GONE)

    def starting(self) -> int:
        return sum(entry.state in (SlotState.STARTING, SlotState.BACKOFF) for entry in self._slots.values())

    def undescribed(self) -> int:
        return sum(
            entry.device is None and entry.state in (SlotState.STARTING, SlotState.BACKOFF)
            for entry in self._slots.values()
        )

    def waiting_for(self) -> str | None:
        if any(entry.state in (SlotState.IDLE, SlotState.RUNNING) for entry in self._slots.values()):
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
            self._drop(entry, SlotState.GONE)
        self._placeholders.close()
        ray.kill(self._board, no_restart=True)

    # -- slots and actors -------------------------------------------------------------------------------------

    def _find_placements(self, nodes: Nodes) -> None:
        self._names = name_nodes(nodes, self._names)
        if self._options.kinds is None and all(entry.device is None for entry in self._slots.values()):
            # Fixed by the first device: a sweep on GPUs does not continue on CPUs when the GPUs are taken away.
            self._with_cpu = not has_gpu(nodes)
        self._found = placements(
            nodes, self._names, with_cpu=self._with_cpu, cpu_slots=self._options.cpu_slots, of_a_cell=self._options.of_a_cell
        )  # fmt: skip
        for name, entry in list(self._slots.items()):
            if name not in self._found and entry.state in (SlotState.BACKOFF, SlotState.RELEASED):
                del self._slots[name]

    def _take_slots(self) -> None:
        """Take what was found, as far as it may be. One that is gone makes room for another."""
        free = self._most() - self._held() - self._resting()
        for name, placement in self._found.items():
            if name not in self._slots and free > 0:
                self._slots[name] = SlotEntry(placement)
                free -= 1

    def _most(self) -> float:
        return float("inf") if self._options.max_devices is None else self._options.max_devices

    def _held(self) -> int:
        return sum(entry.state not in (SlotState.RELEASED, SlotState.GONE) for entry in self._slots.values())

    def _resting(self) -> int:
        """Released devices keep their place, unless a kind that was named is still to be found behind them."""
        seen = [entry.device.kind for entry in self._slots.values() if entry.device is not None]
        if any(not any(_asks_for(kind, [name]) for kind in seen) for name in self._options.kinds or ()):
            return 0
        return sum(entry.state is SlotState.RELEASED for entry in self._slots.values())

    def _lacking(self) -> int:
        """Return how many devices new nodes could add. CPU slots are no reason to ask for nodes."""
        here = [entry for entry in self._slots.values() if entry.state is not SlotState.GONE]
        if any(not entry.placement.gpu or entry.state is SlotState.BACKOFF for entry in here):
            return 0
        return int(max(0, min(self._demand, self._most()) - len(here)))

    def _start_due(self, now: float) -> None:
        for name, entry in self._slots.items():
            if (
                entry.state is SlotState.BACKOFF
                and now >= entry.deadline
                and not self._waits_for_first(entry)
            ):
                self._start(name, entry)

    def _waits_for_first(self, entry: SlotEntry) -> bool:
        """The CPU slots of a node share its cores: where all warmed up at once, the first cell would wait for all."""
        if entry.placement.gpu:
            return False
        here = [
            other
            for other in self._slots.values()
            if other.placement.node_id == entry.placement.node_id and not other.placement.gpu
        ]
        is_warming = any(other.state is SlotState.STARTING for other in here)
        return is_warming and all(other.device is None for other in here)

    def _start(self, name: SlotId, entry: SlotEntry) -> None:
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
        self._track(entry, SlotState.STARTING, entry.handle.describe.remote())
        entry.deadline = self._clock() + self._options.start_limit_s

    def _track(self, entry: SlotEntry, state: SlotState, ref: Any) -> None:
        entry.state, entry.ref = state, ref
        self._by_ref[ref] = entry.placement.slot

    def _drop(self, entry: SlotEntry, state: SlotState) -> None:
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
            return [self._lost(name, entry, error), *self._break_up(name)]
        if isinstance(value, Device):
            return self._described(name, entry, value)
        group = self._groups.take_back(name, value)
        attempt = group.attempt()
        if attempt is None:
            return []  # the others are still at it; it stays clean and takes nothing meanwhile
        ready = [self._free(slot, group.returned[slot].device_dirty) for slot in group.slots]
        return [AttemptReturned(group.slots[0], attempt), *ready]

    def _free(self, name: SlotId, dirty: str | None) -> FleetEvent:
        entry = self._slots[name]
        assert entry.device is not None
        entry.lease, entry.failed_starts = None, 0
        if dirty is not None:
            # A fresh actor proves the device clean before it takes a lease, or fails to start.
            return self._lose(name, entry, f"not clean after a cell: {dirty}", 0.0)
        entry.state = SlotState.IDLE
        return SlotReady(name, entry.device)

    def _break_up(self, lost: SlotId) -> list[FleetEvent]:
        """End what the other slots of a lost one run with it: without it they come to no end. They start afresh."""
        events: list[FleetEvent] = []
        if (group := self._groups.break_up(lost)) is None:
            return events
        for name in group.slots:
            if name == lost:
                continue
            entry = self._slots[name]
            if not group.waits_for(name):
                events.append(self._free(name, group.returned[name].device_dirty))
            else:
                entry.lease = None
                events.append(self._lose(name, entry, f"ended with {lost}, which ran the same cell", 0.0))
        return events

    def _described(self, name: SlotId, entry: SlotEntry, device: Device) -> list[FleetEvent]:
        entry.device, entry.why_not_started = device, None
        kinds = self._options.kinds
        if kinds is not None and not _asks_for(device.kind, kinds):
            entry.excluded = True
            self._drop(entry, SlotState.GONE)
            return []
        entry.state = SlotState.IDLE
        return [SlotReady(name, device)]

    def _expire(self, now: float) -> list[FleetEvent]:
        events: list[FleetEvent] = []
        late: list[tuple[SlotId, str]] = []
        for name, entry in self._slots.items():
            if (
                entry.state in (SlotState.STARTING, SlotState.RUNNING)
                and entry.ref is not None
                and now >= entry.deadline
            ):
                doing = "start" if entry.state is SlotState.STARTING else "hand back its attempt"
                late.append((name, f"the actor did not {doing} in time"))
        for name, reason in late:
            if (entry := self._slots[name]).state in (
                SlotState.STARTING,
                SlotState.RUNNING,
            ):  # not ended with another
                events += [self._lose(name, entry, reason, 0.0), *self._break_up(name)]
        return events

    def _lost(self, name: SlotId, entry: SlotEntry, error: RayError) -> SlotLost:
        told = f"{type(error).__name__}: {_without_names(error)}"
        reason = cause_first(told)[:_MAX_REASON]
        if entry.state is SlotState.STARTING:
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
        entry: SlotEntry,
        reason: str,
        backoff_s: float,
        *,
        host_oom_victim: bool = False,
        preempted: bool = False,
        node_lost: bool = False,
    ) -> SlotLost:
        lease, device = entry.lease, entry.device
        started = entry.state is not SlotState.STARTING
        entry.failed_starts = 0 if started or node_lost else entry.failed_starts + 1
        given_up = entry.failed_starts >= _MAX_FAILED_STARTS
        self._drop(entry, SlotState.GONE if given_up else SlotState.BACKOFF)
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
