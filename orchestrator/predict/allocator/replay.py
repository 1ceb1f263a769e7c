"""A trace of allocations and releases, run through the allocator model."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.predict.allocator.blocks import Block
from orchestrator.predict.allocator.caching import CachingAllocator, OutOfDeviceMemory

#: Events in order. n > 0 allocates n bytes; 0 allocates nothing; ~i (negative) frees what event i allocated.
Trace = Sequence[int]


@dataclass(frozen=True, slots=True)
class AllocationFailure:
    """The event that ran out of memory, and the allocator's account at that moment, in bytes."""

    event: int
    requested: int
    wanted: int
    allocated: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Replay:
    """`allocated`, `reserved`: bytes after each event, up to the one that failed. `failure`: None where all fitted.

    Active bytes (allocated, or freed while another stream may read them) are `allocated`: there is one stream.
    """

    allocated: "array[int]"
    reserved: "array[int]"
    peak_allocated: int
    peak_reserved: int
    failure: AllocationFailure | None


class TraceError(ValueError):
    """A trace frees what is not there."""


def replay(trace: Trace, allocator: CachingAllocator, kernels: Mapping[int, int] | None = None) -> Replay:
    """Run `trace` through `allocator`, which keeps its state: a second trace goes on where this one ends.

    `kernels`: bytes that the driver loads before an event, by the event.

    Only blocks of this very trace can be freed by it. Raises `TraceError`.
    """
    allocated, reserved = array("q"), array("q")
    blocks: dict[int, Block] = {}
    failure = None
    allocate, free = allocator.allocate, allocator.free
    kernels = kernels or {}
    for index, event in enumerate(trace):
        if index in kernels:
            allocator.load_kernels(kernels[index])
        if event > 0:
            try:
                blocks[index] = allocate(event)
            except OutOfDeviceMemory as full:
                failure = AllocationFailure(index, full.requested, full.wanted, full.allocated, full.reserved)
                break
        elif event < 0:
            block = blocks.pop(~event, None)
            if block is None:
                raise TraceError(f"event {index} frees event {~event}, which holds nothing")
            free(block)
        allocated.append(allocator.allocated)
        reserved.append(allocator.reserved)
    return Replay(allocated, reserved, allocator.peak_allocated, allocator.peak_reserved, failure)
