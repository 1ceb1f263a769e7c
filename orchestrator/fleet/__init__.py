"""Defines devices as the driver sees them: slots that take one lease at a time and hand back attempts.

`ray_fleet` implements it on Ray. The driver's loop knows only this protocol, so that tests can simulate a fleet.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.attempt import Attempt, Device
from workers.cell import Lease
from workers.progress import Progress

# Ray prints pages of a lost node's log to the driver's stdout. The driver says in one line what it lost. Ray reads
# the variable when it is imported, so it is set before any module here imports Ray.
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
    """The actor or its node is gone. `lease`: what it was running. It may have finished, and its result be lost."""

    slot: SlotId
    lease: Lease | None
    reason: str
    device: Device | None
    host_oom_victim: bool = False  # Ray's memory monitor ended it; a neighbour may be the cause
    preempted: bool = False
    node_lost: bool = False  # the whole node is gone or does not answer: neither cell nor device is to blame
    gone_for_good: bool = False  # it failed to start so often that the fleet gave it up


@dataclass(frozen=True, slots=True)
class Progressed:
    """News of a running lease, at most about once a second per slot; some may be missing."""

    slot: SlotId
    progress: Progress


FleetEvent = SlotReady | AttemptReturned | SlotLost | Progressed


class Fleet(Protocol):
    def poll(self, timeout_s: float, linger_s: float = 0.0) -> list[FleetEvent]:
        """Wait at most `timeout_s` for the first event. Return it with all that come within `linger_s` of it.

        Finds new nodes and restarts lost actors meanwhile.
        """

    def submit(self, slots: Sequence[SlotId], lease: Lease) -> None:
        """Run `lease` on idle slots of one node, as many as its cell asks for. One lease in flight per slot.

        The first slot leads: the attempt comes back as its own, when all have ended. When one is lost the others end.
        """

    def demand(self, devices: int) -> None:
        """Tell for how many devices there is work, busy ones included. An autoscaling cluster may grow to that."""

    def release(self, slot: SlotId) -> None:
        """Let an idle slot go, so that its node may scale down. It comes back only after `recall`."""

    def recall(self) -> None:
        """Start released slots again."""

    def retire(self, slot: SlotId, reason: str) -> None:
        """Take a device out of the fleet for good and release it."""

    def starting(self) -> int:
        """Return how many slots are starting, or wait to be started again."""

    def undescribed(self) -> int:
        """Return how many of `starting` have no known device yet. They may be of a kind that has work to do."""

    def waiting_for(self) -> str | None:
        """Return what the fleet lacks, in words, while it has no slot (such as a device of the named kinds)."""

    def close(self) -> None:
        """End every actor, and with it every child, within 2 s."""
