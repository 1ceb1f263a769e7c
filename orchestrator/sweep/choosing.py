"""Chooses which cell that waits runs on which idle devices next. Touches no device."""

import math
from collections.abc import Callable, Generator, Iterator

from orchestrator.sweep.in_flight import CellsInFlight
from orchestrator.sweep.roster import IdleDevice, Roster
from orchestrator.sweep.work.item import WorkItem
from orchestrator.sweep.work.kind_queue import KindWork
from workers.attempt import Device

#: Idle devices of one node, and the item that is to run on them, which has left its queue.
Choice = tuple[list[IdleDevice], WorkItem]


class Chooser:
    """A cell for several devices is a group. All its devices are taken at once or none is, and of each kind one node at most
    is held until enough of its devices are idle: no two groups can wait for devices of each other. The group that a node is
    held for is the first in line, so none waits for ever.
    """

    def __init__(self, roster: Roster, in_flight: CellsInFlight, clock: Callable[[], float]) -> None:
        self._roster, self._in_flight, self._clock = roster, in_flight, clock
        self._empty_until: dict[str, float] = {}  # by node

    def keep_empty(self, node: str, until: float) -> None:
        """Start nothing on `node` until then."""
        self._empty_until[node] = until

    def choices(self, kind: KindWork) -> Iterator[Choice]:
        """Give what is to start now. Each is started, and counts as in flight, before the next one is asked for."""
        held = yield from self._groups(kind)
        for idle in self._roster.idle(kind.kind):
            if not len(kind.queue):
                return
            if idle.device.node == held or not self._roster.is_idle(idle):
                continue
            item = self._choose(kind, idle.device)
            if item is not None:
                yield self._roster.idle_beside(idle)[: item.cell.devices], item
                held = yield from self._groups(kind)

    def lacks_devices(self, kind: KindWork) -> bool:
        """Whether more devices than the live ones would be of use now."""
        sizes = kind.queue.sizes()
        if 1 in sizes and len(kind.queue) > len(self._roster.idle(kind.kind)):
            return True
        return max(sizes, default=0) > self._roster.largest_node(kind.kind)

    def is_of_no_use(self, kind: KindWork, device: Device) -> bool:
        """Whether nothing is left for the device: nothing at all, or only groups for which its node has too few devices and
        another has enough."""
        if not kind.has_work:
            return True
        sizes = kind.sizes()
        too_few = self._roster.devices_beside(device) < min(sizes)
        return too_few and max(sizes) <= self._roster.largest_node(kind.kind)

    def _groups(self, kind: KindWork) -> Generator[Choice, None, str | None]:
        """Give the groups that are next in line. Returns the node that is held for one that has to wait."""
        if kind.queue.sizes() <= {1} or kind.queue.alone() is not None:
            return None
        largest = self._roster.largest_node(kind.kind)
        while (item := kind.queue.next_group(lambda devices: devices <= largest)) is not None:
            chosen = self._roster.group_for(item, self._takes_cells)
            if not chosen:
                return self._roster.hold_node(item)
            yield chosen, kind.queue.remove(item.key)
        self._roster.end_holding(kind.kind)
        return None

    def _takes_cells(self, node: str) -> bool:
        return not (self._is_kept_empty(node) or self._roster.is_emptied(node))

    def _is_kept_empty(self, node: str) -> bool:
        return self._in_flight.is_alone(node) or self._clock() < self._empty_until.get(node, -math.inf)

    def _choose(self, kind: KindWork, device: Device) -> WorkItem | None:
        node = device.node
        if self._is_kept_empty(node):
            return None
        alone = kind.queue.alone()
        if alone is None:
            self._roster.end_emptying(kind.kind)
        elif self._roster.node_to_empty(kind.kind, node, alone.cell.devices) == node:
            if self._in_flight.is_busy(node) or not self._roster.has_idle(device, alone.cell.devices):
                return None
            self._roster.end_emptying(kind.kind)
            return kind.queue.remove(alone.key)
        if self._roster.is_emptied(node):
            return None
        return kind.queue.take(
            device,
            warm=self._roster.warm_models(node),
            devices=len(self._roster.live(kind.kind)),
            elsewhere=self._roster.has_other_for,
        )
