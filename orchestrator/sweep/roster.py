"""Keeps the devices of a sweep: which are live, which are idle and since when, which were released or retired."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from orchestrator.fleet import SlotId
from orchestrator.sweep.work.item import WorkItem
from workers.attempt import Device

_WARM_MODELS = 2  # per node


class IdleDevice(NamedTuple):
    slot: SlotId
    device: Device
    since: float


class Roster:
    """A device is live from `join` until `leave`, `release` or `retire`. While live it is idle or runs a cell.

    A node may be emptied for a cell that needs it to itself, one at a time for each kind. Another one may be held for a cell
    that needs several of its devices at a time.
    """

    def __init__(self) -> None:
        self._live: defaultdict[str, dict[SlotId, Device]] = defaultdict(dict)  # by kind
        self._idle: defaultdict[str, dict[SlotId, IdleDevice]] = defaultdict(dict)  # by kind
        self._absent_since: dict[str, float] = {}  # by kind: when its last live device went
        self._released: dict[SlotId, str] = {}  # to its kind
        self._retired: set[str] = set()  # UUIDs
        self._emptied: dict[str, str] = {}  # by kind: a node
        self._held: dict[str, str] = {}  # by kind: a node
        self._warm: dict[str, list[str]] = {}  # by node: models in its page cache, the latest first

    # Coming and going

    def join(self, slot: SlotId, device: Device, now: float) -> bool:
        """The device is ready for a cell. Returns whether it is new."""
        is_new = slot not in self._live[device.kind]
        self._live[device.kind][slot] = device
        self._idle[device.kind][slot] = IdleDevice(slot, device, now)
        self._absent_since.pop(device.kind, None)
        return is_new

    def start(self, idle: IdleDevice, model: str) -> None:
        """The device is no longer idle: it runs a cell of `model`, which its node has in its page cache from now."""
        device = idle.device
        del self._idle[device.kind][idle.slot]
        models = [model, *self._warm.get(device.node, ())]
        self._warm[device.node] = list(dict.fromkeys(models))[:_WARM_MODELS]

    def leave(self, slot: SlotId, device: Device | None, now: float) -> None:
        """The device, or its node, is gone."""
        self._released.pop(slot, None)
        for kind in list(self._live):
            self._remove(kind, slot, now)

    def release(self, idle: IdleDevice) -> None:
        """The device is let go until `take_released`."""
        kind = idle.device.kind
        del self._idle[kind][idle.slot], self._live[kind][idle.slot]
        self._released[idle.slot] = kind

    def retire(self, slot: SlotId, device: Device, now: float) -> bool:
        """The device takes no cell again. Returns whether it was live."""
        self._retired.add(device.uuid)
        return self._remove(device.kind, slot, now)

    def take_released(self, kind: str) -> bool:
        """Forget what was released, of every kind. Returns whether there was a device of `kind` among it."""
        if kind not in self._released.values():
            return False
        self._released.clear()
        return True

    def _remove(self, kind: str, slot: SlotId, now: float) -> bool:
        self._idle[kind].pop(slot, None)
        if self._live[kind].pop(slot, None) is None:
            return False
        if not self._live[kind]:
            self._absent_since[kind] = now
        return True

    # Questions

    def is_retired(self, device: Device) -> bool:
        return device.uuid in self._retired

    @property
    def any_retired(self) -> bool:
        return bool(self._retired)

    def live(self, kind: str) -> Mapping[SlotId, Device]:
        return self._live[kind]

    def count(self) -> int:
        """Return the number of live devices."""
        return sum(map(len, self._live.values()))

    def idle(self, kind: str) -> list[IdleDevice]:
        """Return the idle devices of `kind`, the longest idle first."""
        return list(self._idle[kind].values())

    def all_idle(self) -> Iterator[IdleDevice]:
        for kind in list(self._idle):
            yield from self.idle(kind)

    def absent_since(self, kind: str) -> float | None:
        """Return when the last live device of `kind` went, None while there is one."""
        return self._absent_since.get(kind)

    def has_other_for(self, item: WorkItem) -> bool:
        """Whether there are live devices of the item's kind, enough on one node, that it does not avoid."""
        live = self._live[item.key.device_kind].values()
        if item.cell.devices == 1:
            return any(device.uuid not in item.avoid for device in live)
        return (
            _largest(Counter(device.node for device in live if device.uuid not in item.avoid))
            >= item.cell.devices
        )

    def warm_models(self, node: str) -> list[str]:
        return self._warm.get(node, [])

    # Devices of one node, together

    def largest_node(self, kind: str) -> int:
        """Return how many live devices of `kind` a node has, at most."""
        return _largest(Counter(device.node for device in self._live[kind].values()))

    def devices_beside(self, device: Device) -> int:
        """Return how many live devices of its kind the node of `device` has, itself among them."""
        return sum(other.node == device.node for other in self._live[device.kind].values())

    def is_idle(self, idle: IdleDevice) -> bool:
        return idle.slot in self._idle[idle.device.kind]

    def has_idle(self, device: Device, count: int) -> bool:
        """Whether so many devices of its kind are idle on the node of `device`."""
        return sum(one.device.node == device.node for one in self._idle[device.kind].values()) >= count

    def idle_beside(self, idle: IdleDevice) -> list[IdleDevice]:
        """Return the idle devices of its kind on its node: `idle`, then the others."""
        here = (one for one in self._idle[idle.device.kind].values() if one.device.node == idle.device.node)
        return [idle, *(one for one in here if one.slot != idle.slot)]

    def group_for(self, item: WorkItem, is_free: Callable[[str], bool]) -> list[IdleDevice]:
        """Return idle devices of one node for `item`, as many as it asks for: none where no node has so many.

        The node that is held comes first, then the one on which the fewest others stay idle: small gaps are filled first.
        Devices that the item avoids serve only where no node has enough others. `is_free`: whether a node takes cells.
        """
        kind, wanted = item.key.device_kind, item.cell.devices
        avoid = self._avoided(item)
        by_node: defaultdict[str, list[IdleDevice]] = defaultdict(list)
        for idle in self._idle[kind].values():
            if idle.device.uuid not in avoid:
                by_node[idle.device.node].append(idle)
        enough = [node for node, idle in by_node.items() if len(idle) >= wanted and is_free(node)]
        if not enough:
            return []
        held = self._held.get(kind)
        return by_node[min(enough, key=lambda node: (node != held, len(by_node[node])))][:wanted]

    def hold_node(self, item: WorkItem) -> str | None:
        """Return the node on which devices for `item` are to come together: nothing else starts there. It stays the same
        while it has enough, so that they come idle one after the other."""
        kind, wanted, avoid = item.key.device_kind, item.cell.devices, self._avoided(item)
        live = Counter(device.node for device in self._live[kind].values() if device.uuid not in avoid)
        if (held := self._held.get(kind)) is None or live[held] < wanted:
            idle = Counter(one.device.node for one in self._idle[kind].values())
            enough = [node for node, count in live.items() if count >= wanted]
            if not enough:
                return None
            held = self._held[kind] = max(enough, key=lambda node: (idle[node], -live[node]))
        return held

    def _avoided(self, item: WorkItem) -> frozenset[str]:
        return item.avoid if self.has_other_for(item) else frozenset()

    def end_holding(self, kind: str) -> None:
        self._held.pop(kind, None)

    # Nodes that are emptied for a cell that must be alone

    def node_to_empty(self, kind: str, node: str, devices: int = 1) -> str | None:
        """Return the node that is emptied for the cells of `kind`: from now `node`, where there is none that has so many
        devices of the kind, and `node` has."""
        chosen = self._emptied.get(kind)
        if chosen is not None and self._count(chosen, kind) >= devices:
            return chosen
        if self._count(node, kind) < devices:
            return None
        self._emptied[kind] = node
        return node

    def is_emptied(self, node: str) -> bool:
        return any(emptied == node and self._count(node, kind) for kind, emptied in self._emptied.items())

    def end_emptying(self, kind: str) -> None:
        self._emptied.pop(kind, None)

    def _count(self, node: str, kind: str) -> int:
        return sum(device.node == node for device in self._live[kind].values())


def _largest(counts: Mapping[str, int]) -> int:
    return max(counts.values(), default=0)
