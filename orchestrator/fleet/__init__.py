"""Devices as the driver sees them: slots that take one lease at a time and hand back attempts.

`ray_fleet` is the real one; the driver loop knows only this seam, so that a simulated fleet can stand in.
"""

import os
from dataclasses import dataclass
from typing import Protocol

from workers.attempt import Attempt, Device
from workers.cell import Lease
from workers.progress import Progress

# Ray prints a lost node's log into the driver's stdout, pages of it; the driver says in a line what it lost. Read
# when Ray is imported, so it stands before any module here that does.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

SlotId = str


@dataclass(frozen=True, slots=True)
class SlotReady:
    """A device is clean and idle, for the first time or again."""

    slot: SlotId
    device: Device


@dataclass(frozen=True, slots=True)
class AttemptReturned:
    """An attempt came back. The slot takes no lease until its next `SlotReady`."""

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
    node_lost: bool = False  # the whole node went, or cannot be reached: no blame on the cell or the device
    gone_for_good: bool = False  # it failed to start so often that the fleet gave it up


@dataclass(frozen=True, slots=True)
class Progressed:
    """News of a running lease, at most about once a second per slot; some may be missing."""

    slot: SlotId
    progress: Progress


FleetEvent = SlotReady | AttemptReturned | SlotLost | Progressed


class Fleet(Protocol):
    def poll(self, timeout_s: float, linger_s: float = 0.0) -> list[FleetEvent]:
        """Wait for the first event at most `timeout_s`, then all that come within `linger_s` of it.

        Finds new nodes and restarts lost actors on the way.
        """

    def submit(self, slot: SlotId, lease: Lease) -> None:
        """Run `lease` on an idle slot. One lease in flight per slot."""

    def demand(self, devices: int) -> None:
        """How many devices there is work for, those at work included: an autoscaling cluster may grow to that."""

    def release(self, slot: SlotId) -> None:
        """Let an idle slot go: its node may scale down. It comes back only after `recall`."""

    def recall(self) -> None:
        """There is work again: start released slots anew."""

    def retire(self, slot: SlotId, reason: str) -> None:
        """Take a device out of the fleet for good (quarantine) and release it."""

    def starting(self) -> int:
        """Slots that may become ready without anything new joining: starting, or waiting to be started again."""

    def undescribed(self) -> int:
        """Those of `starting` whose device nobody has seen yet: they may be of a kind that has work to do."""

    def waiting_for(self) -> str | None:
        """What the fleet lacks, in words, while it has no slot at all (e.g. no device of the named kinds)."""

    def close(self) -> None:
        """End every actor and so every child. Bounded by 2 s."""
