"""Defines a cell's device as the cell's own process sees it. `workers.host.devices.Slot` is the host's side of it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from workers.attempt import Phase
from workers.host.events import Request


@dataclass(frozen=True, slots=True)
class MemoryAtFailure:
    """What the device held when an allocation failed, in bytes. None: not counted on this device."""

    free: int | None
    allocated: int | None
    reserved: int | None
    snapshot: bytes | None = None


class AllocatorPeaks(NamedTuple):
    """Peaks of torch's allocator since `begin_run`, in bytes. Named as in `workers.attempt.Measured`."""

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    num_alloc_retries: int | None = None


class ChildDevice(Protocol):
    """Calls come in this order: `set_limits`, `create_context`, `begin_run`, then `end_run` or `note_failure`."""

    #: Whether the process's own memory is the device's.
    is_cpu: bool

    @property
    def torch_device(self) -> torch.device: ...

    def set_limits(self, request: Request) -> int:
        """Put the budget in force where the process itself can. Returns the bytes that the process holds now by the
        host's meter: what it holds above them counts against the budget."""

    def create_context(self) -> int:
        """Load the math libraries. Returns what they hold of the device, in bytes."""

    def enter(self, phase: Phase) -> None:
        """The run enters `phase`. The first time it is PREFILL, the exact peak begins, where one is kept."""

    def begin_run(self) -> None:
        """Wait for what was started, and forget the allocator's peaks."""

    def allocator_bytes(self) -> tuple[int | None, int | None]:
        """Return what torch's allocator holds now: allocated, reserved. None where it keeps no count."""

    def peaks(self) -> AllocatorPeaks: ...

    def end_run(self) -> None:
        """End the exact peak, for `data_peak_bytes`."""

    @property
    def data_peak_bytes(self) -> int | None:
        """The exact peak of the run above `set_limits`' account. None before `end_run`, and where none is kept."""

    def lift_limits(self) -> None:
        """From here on nothing counts against the budget."""

    def note_failure(self) -> None:
        """Keep what is needed for `at_failure`, then lift the limits."""

    def at_failure(self, reported_free: int | None) -> MemoryAtFailure:
        """Return the memory at `note_failure`. `reported_free`: what the error's message says is free, in bytes."""
