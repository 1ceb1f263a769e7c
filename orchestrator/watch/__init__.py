"""Defines the events by which a sweep reports to its views: a terminal, a log, metrics. They go one way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.attempt import Attempt, Device
from workers.cell import Cell, ModelRef
from workers.outcome import Outcome
from workers.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStarted:
    """`reused`: outcomes found in the journal; `cells`: of the plan, before devices and searches multiply them.

    `models`: of the cells, so that a line can call each by a short name.
    """

    run_id: str
    name: str
    cells: int
    searches: int
    reused: int
    models: Sequence[ModelRef] = ()


@dataclass(frozen=True, slots=True)
class DeviceJoined:
    slot: str
    device: Device


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """`for_good`: it is not coming back (retired, given up); else it is being restarted or was let go."""

    slot: str
    device: Device | None
    reason: str
    for_good: bool


@dataclass(frozen=True, slots=True)
class CellStarted:
    slot: str
    device: Device
    cell: Cell
    attempt: int


@dataclass(frozen=True, slots=True)
class CellProgressed:
    slot: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class CellFinished:
    """`slot` None: no device was used (pruned, quarantined). `final`: this cell is done on this kind of device."""

    slot: str | None
    attempt: Attempt
    final: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """A text for people: the sweep waits for a device, gives up a kind, records a duplicate."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The sweep's totals, about once a second. `eta_s`: predicted device time left over devices, scaled by how
    long finished cells took against their prediction; None before one finished."""

    elapsed_s: float
    queued: int
    running: int
    done: int
    devices: int
    searching: int
    outcomes: Mapping[Outcome, int]
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class SweepEnded:
    exit_status: int
    text: str


SweepEvent = (
    SweepStarted
    | DeviceJoined
    | DeviceLost
    | CellStarted
    | CellProgressed
    | CellFinished
    | Notice
    | Tick
    | SweepEnded
)


class Watcher(Protocol):
    def see(self, event: SweepEvent) -> None:
        """Called on the driver's only thread: return within milliseconds."""

    def close(self) -> None:
        """The sweep is over, however it ended."""
