"""Holds the cells that devices run now."""

from collections import defaultdict
from dataclasses import dataclass

from orchestrator.fleet import SlotId
from orchestrator.sweep.work.item import WorkItem
from workers.attempt import Device
from workers.cell import Lease


@dataclass(slots=True)
class InFlight:
    """One cell on its device, or on several of one node. `slots`, `devices`: the one that leads comes first. `had_neighbour`: at some time meanwhile another cell ran on the same node."""

    slots: tuple[SlotId, ...]
    item: WorkItem
    lease: Lease
    devices: tuple[Device, ...]
    started_at: float
    had_neighbour: bool = False

    @property
    def slot(self) -> SlotId:
        return self.slots[0]

    @property
    def device(self) -> Device:
        return self.devices[0]

    def slot_of(self, device: Device) -> SlotId:
        return next(
            slot for slot, one in zip(self.slots, self.devices, strict=True) if one.uuid == device.uuid
        )


class CellsInFlight(dict[SlotId, InFlight]):
    """By the slot that leads, and by node: a thousand devices ask for their neighbours at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self._by_node: defaultdict[str, dict[SlotId, InFlight]] = defaultdict(dict)
        self._leads: dict[SlotId, SlotId] = {}

    def add(self, flight: InFlight) -> None:
        neighbours = self._by_node[flight.device.node]
        if len(neighbours) == 1:
            next(iter(neighbours.values())).had_neighbour = True
        flight.had_neighbour = bool(neighbours)
        self[flight.slot] = neighbours[flight.slot] = flight
        self._leads |= dict.fromkeys(flight.slots, flight.slot)

    def on(self, slot: SlotId) -> InFlight | None:
        """Return what runs on `slot`, whether or not it leads."""
        return self.get(self._leads.get(slot, slot))

    def remove(self, slot: SlotId) -> InFlight | None:
        """Return what ran on `slot`, which led it, None where nothing did."""
        flight = self.pop(slot, None)
        if flight is not None:
            for one in flight.slots:
                del self._leads[one]
            del self._by_node[flight.device.node][slot]
        return flight

    def is_alone(self, node: str) -> bool:
        """Whether a cell runs there that needs the node to itself."""
        return any(flight.item.alone for flight in self._by_node[node].values())

    def is_busy(self, node: str) -> bool:
        return bool(self._by_node[node])
