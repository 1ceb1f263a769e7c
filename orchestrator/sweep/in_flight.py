"""Holds the cells that devices run now."""

from collections import defaultdict
from dataclasses import dataclass

from orchestrator.fleet import SlotId
from orchestrator.sweep.work.item import WorkItem
from workers.attempt import Device
from workers.cell import Lease


@dataclass(slots=True)
class InFlight:
    """One cell on one device. `had_neighbour`: at some time meanwhile another cell ran on the same node."""

    slot: SlotId
    item: WorkItem
    lease: Lease
    device: Device
    started_at: float
    had_neighbour: bool = False


class CellsInFlight(dict[SlotId, InFlight]):
    """By slot, and by node: a thousand devices ask for their neighbours at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self._by_node: defaultdict[str, dict[SlotId, InFlight]] = defaultdict(dict)

    def add(self, flight: InFlight) -> None:
        neighbours = self._by_node[flight.device.node]
        if len(neighbours) == 1:
            next(iter(neighbours.values())).had_neighbour = True
        flight.had_neighbour = bool(neighbours)
        self[flight.slot] = neighbours[flight.slot] = flight

    def remove(self, slot: SlotId) -> InFlight | None:
        """Return what ran on `slot`, None where nothing did."""
        flight = self.pop(slot, None)
        if flight is not None:
            del self._by_node[flight.device.node][slot]
        return flight

    def is_alone(self, node: str) -> bool:
        """Whether a cell runs there that needs the node to itself."""
        return any(flight.item.alone for flight in self._by_node[node].values())

    def is_busy(self, node: str) -> bool:
        return bool(self._by_node[node])
