"""Keeps the leases that several slots run together, and what has come back of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.fleet import SlotId
from workers.attempt import Attempt
from workers.cell import Lease
from workers.ranks import Ranks
from workers.ranks_attempt import attempt_of_ranks


@dataclass
class SlotGroup:
    """One lease on the slots that run it. `slots`: in the order of their ranks."""

    slots: tuple[SlotId, ...]
    lease: Lease
    returned: dict[SlotId, Attempt] = field(default_factory=dict)

    def ranks(self, slot: SlotId) -> Ranks:
        return Ranks(self.slots.index(slot), len(self.slots), self.lease.lease_id)

    def waits_for(self, slot: SlotId) -> bool:
        return slot not in self.returned

    def attempt(self) -> Attempt | None:
        """Return the attempt of the lease, None until every slot has handed back its own."""
        if len(self.returned) < len(self.slots):
            return None
        return attempt_of_ranks([self.returned[slot] for slot in self.slots])


class Groups:
    """The groups that run now, each slot in one at most."""

    def __init__(self) -> None:
        self._of: dict[SlotId, SlotGroup] = {}

    def start(self, slots: Sequence[SlotId], lease: Lease) -> SlotGroup:
        group = SlotGroup(tuple(slots), lease)
        self._of |= dict.fromkeys(slots, group)
        return group

    def take_back(self, slot: SlotId, attempt: Attempt) -> SlotGroup:
        """Note what `slot` hands back. Returns its group, which is over when it has an `attempt`."""
        group = self._of[slot]
        group.returned[slot] = attempt
        if len(group.returned) == len(group.slots):
            self._end(group)
        return group

    def break_up(self, slot: SlotId) -> SlotGroup | None:
        """End the group of `slot`, which is lost. None where it runs nothing."""
        group = self._of.get(slot)
        if group is not None:
            self._end(group)
        return group

    def _end(self, group: SlotGroup) -> None:
        for slot in group.slots:
            del self._of[slot]
