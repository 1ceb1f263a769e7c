"""Defines what is read of a device's state beside its memory, and the values that a reading has."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class StateReading(NamedTuple):
    """`throttle`: why the clock is held down now, by name; () for no reason. None: not offered."""

    power_w: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    cpu_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] | None = None


class Counters(NamedTuple):
    """Counts since some moment of the past: only differences mean something."""

    energy_j: float | None = None
    pcie_replays: int | None = None
    ecc_errors: int | None = None


class StateMeter(Protocol):
    """One device's state. Nothing here raises: what the device does not offer is None, with its reason."""

    @property
    def energy_source(self) -> str:
        """Name of the counter behind `Counters.energy_j`."""

    @property
    def energy_period_s(self) -> float:
        """The counter moves this often."""

    @property
    def not_offered(self) -> Mapping[str, str]:
        """Quantity -> why this device has it not."""

    def read(self) -> StateReading:
        """Read what changes. Cheap enough for twenty calls a second."""

    def counters(self) -> Counters:
        """Read the counters. May take milliseconds: call at the edges of phases only."""
