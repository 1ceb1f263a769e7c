"""What torch's allocator held when memory ran out and could not use, and what that cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low

from workers.attempt import Attempt
from workers.outcome import Outcome

#: Fragmentation above this share of the card is worth a sentence, and a look at other settings of the allocator.
NOTABLE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAtEnd:
    """Bytes when memory ran out. `allocated_bytes`: live tensors. `reserved_bytes`: held by torch's allocator.
    `device_bytes`: the peak of the device; a request that failed is in none of them. None: not available.
    """

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None

    @property
    def fragmentation_bytes(self) -> int | None:
        """Reserved less allocated: the allocator had given back whole free segments before, so the request fitted into
        no piece of it."""
        if self.allocated_bytes is None or self.reserved_bytes is None:
            return None
        return self.reserved_bytes - self.allocated_bytes


def memory_at_end(attempts: Iterable[Attempt]) -> MemoryAtEnd:
    """Of the attempt with the median fragmentation among those that ran out of device memory in the prompt or after it.

    What fails while it loads says nothing of a run.
    """
    ends = [
        MemoryAtEnd(
            allocated_bytes=attempt.failure.oom_allocated_bytes,
            reserved_bytes=attempt.failure.oom_reserved_bytes,
            device_bytes=attempt.peak_device_bytes,
        )
        for attempt in attempts
        if attempt.outcome in (Outcome.OOM_PREFILL, Outcome.OOM_DECODE) and attempt.failure is not None
    ]
    sizes = [end.fragmentation_bytes for end in ends if end.fragmentation_bytes is not None]
    if not sizes:
        return MemoryAtEnd()
    middle = median_low(sizes)
    return next(end for end in ends if end.fragmentation_bytes == middle)
