"""Reads the memory of a device, a process and a machine, from outside the process that is measured."""

from typing import NamedTuple, Protocol


class MeterReading(NamedTuple):
    """`device_bytes`: what a budget is compared with. `process_bytes`: one process's part. None: not available."""

    device_bytes: int | None
    process_bytes: int | None


class Meter(Protocol):
    def read(self) -> MeterReading:
        """Read now. Cheap enough for hundreds of calls a second. Raises nothing when the process has ended."""
