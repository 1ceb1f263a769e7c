"""What the fleet on Ray knows of one slot, and how it treats slots."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from orchestrator.fleet.slots import Placement
from workers.attempt import Device
from workers.cell import Lease

_REFRESH_S = 10.0
_START_LIMIT_S = 120.0  # an infeasible actor pends for ever
_DEADLINE_GRACE_S = 60.0  # the device host ends a late child itself; this is for a host that no longer does
_START_BACKOFF_S = 5.0
_SUSPECT_NODE_S = 30.0  # a node whose raylet died still reads alive for 14 to 25 s


class SlotState(Enum):
    STARTING = auto()
    IDLE = auto()
    RUNNING = auto()
    BACKOFF = auto()
    RELEASED = auto()
    GONE = auto()  # retired, given up, or of a kind that nobody asked for


@dataclass
class SlotEntry:
    """`ref`: the answer that is awaited. A slot that runs with others and has handed back its part is RUNNING without one."""

    placement: Placement
    state: SlotState = SlotState.BACKOFF
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
    """`kinds`: substrings of device names to use, None = all. `cpu_slots`: per node, where CPUs serve at all; `of_a_cell`: at
    least so many where there is no such number.
    `max_devices`: held at a time, in the whole cluster; None = all."""

    run_id: str
    kinds: Sequence[str] | None = None
    cpu_slots: int | None = None
    of_a_cell: int = 1
    max_devices: int | None = None
    start_limit_s: float = _START_LIMIT_S
    start_backoff_s: float = _START_BACKOFF_S
    deadline_grace_s: float = _DEADLINE_GRACE_S
    refresh_s: float = _REFRESH_S
    suspect_node_s: float = _SUSPECT_NODE_S
