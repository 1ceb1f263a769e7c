"""Devices as the driver sees them: slots that take one lease at a time and hand back attempts.

`ray_fleet` is the real one; the driver loop knows only this seam, so that a simulated fleet can stand in.
"""

from dataclasses import dataclass
from typing import Protocol

from workers.attempt import Attempt, Device
from workers.cell import Lease

SlotId = str


@dataclass(frozen=True, slots=True)
class SlotReady:
    """A device is clean and idle, for the first time or again."""

    slot: SlotId
    device: Device


@dataclass(frozen=True, slots=True)
class Finished:
    slot: SlotId
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SlotLost:
    """The actor or its node is gone. `lease`: what it was running; it may have finished, unseen."""

    slot: SlotId
    lease: Lease | None
    reason: str
    device: Device | None
    host_oom_victim: bool = False  # Ray's memory monitor ended it: the culprit may be a neighbour
    preempted: bool = False


FleetEvent = SlotReady | Finished | SlotLost


class Fleet(Protocol):
    def poll(self, timeout_s: float) -> list[FleetEvent]:
        """Wait for the first event at most `timeout_s`, then all that are ready. Finds new nodes, restarts lost actors."""

    def submit(self, slot: SlotId, lease: Lease) -> None:
        """Run `lease` on an idle slot. One lease in flight per slot."""

    def retire(self, slot: SlotId, reason: str) -> None:
        """Take a device out of the fleet for good (quarantine) and release it."""

    def waiting_for(self) -> str | None:
        """What the fleet lacks, in words, while it has no slot at all (e.g. no device of the named kinds)."""

    def close(self) -> None:
        """End every actor and so every child. Bounded by 2 s."""
