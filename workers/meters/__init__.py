"""Meters: what a device, a process and a machine hold, read from outside the process that is measured."""

from typing import NamedTuple, Protocol


class Reading(NamedTuple):
    """`device_bytes`: what a budget is held against. `process_bytes`: one process's part. None = not available."""

    device_bytes: int | None
    process_bytes: int | None


class Meter(Protocol):
    def read(self) -> Reading:
        """Cheap enough for hundreds of calls a second. Never raises for a process that has gone."""
