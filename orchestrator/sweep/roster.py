"""Keeps the devices of a sweep: which are live, which are idle and since when, which were released or retired."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
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

    A node may be emptied for a cell that needs it to itself, one at a time for each kind.
    """

    def __init__(self) -> None:
        self._live: defaultdict[str, dict[SlotId, Device]] = defaultdict(dict)  # by kind
        self._idle: defaultdict[str, dict[SlotId, IdleDevice]] = defaultdict(dict)  # by kind
        self._absent_since: dict[str, float] = {}  # by kind: when its last live device went
        self._released: dict[SlotId, str] = {}  # to its kind
        self._retired: set[str] = set()  # UUIDs
        self._emptied: dict[str, str] = {}  # by kind: a node
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
        """Whether a live device of the item's kind is none that the item avoids."""
        return any(device.uuid not in item.avoid for device in self._live[item.key.device_kind].values())

    def warm_models(self, node: str) -> list[str]:
        return self._warm.get(node, [])

    # Nodes that are emptied for a cell that must be alone

    def node_to_empty(self, kind: str, node: str) -> str:
        """Return the node that is emptied for the cells of `kind`: from now `node`, where there is none that has a device of
        the kind."""
        chosen = self._emptied.get(kind)
        if chosen is None or not self._has(chosen, kind):
            chosen = self._emptied[kind] = node
        return chosen

    def is_emptied(self, node: str) -> bool:
        return any(emptied == node and self._has(node, kind) for kind, emptied in self._emptied.items())

    def end_emptying(self, kind: str) -> None:
        self._emptied.pop(kind, None)

    def _has(self, node: str, kind: str) -> bool:
        return any(device.node == node for device in self._live[kind].values())
