"""The cells that are with devices."""

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass

from orchestrator.fleet import SlotId
from orchestrator.sweep.work.item import WorkItem
from workers.attempt import Device
from workers.cell import Lease


@dataclass(frozen=True, slots=True)
class Loan:
    """A cell that is with a device."""

    item: WorkItem
    lease: Lease
    device: Device
    started_at: float


class Loans(dict[SlotId, Loan]):
    """By slot; and by node, since a thousand devices ask for their neighbours at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self._by_node: defaultdict[str, set[str]] = defaultdict(set)

    def lend(self, slot: SlotId, loan: Loan) -> None:
        self[slot] = loan
        self._by_node[loan.device.node].add(loan.lease.lease_id)

    def take_back(self, slot: SlotId) -> Loan | None:
        """None when nothing was lent to `slot`."""
        loan = self.pop(slot, None)
        if loan is not None:
            self._by_node[loan.device.node].discard(loan.lease.lease_id)
        return loan

    def leases_on(self, node: str) -> Set[str]:
        return self._by_node[node]
