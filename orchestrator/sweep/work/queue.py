"""Queues the items for one kind of device: longest first, with a preference for a model that the node has warm."""

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from orchestrator.sweep.work.item import Key, WorkItem
from workers.attempt import Device

#: A cell of a warm model may go before a longer one, if it is at least this share as long.
_WARM_SHARE = 0.5


class WorkQueue:
    """A heap per model and number of devices, and a short list of urgent items. Removal is lazy: pruning removes thousands
    at once.

    `devices`: that all items together ask for. An item for several devices is a group.
    """

    def __init__(self, items: Iterable[WorkItem] = ()) -> None:
        self._live: dict[Key, WorkItem] = {}
        self._heaps: dict[tuple[str, int], list[tuple[tuple[float, int, int], Key]]] = {}
        self._by_devices: Counter[int] = Counter()
        self._urgent: list[WorkItem] = []
        self.seconds = 0.0
        self.devices = 0
        for item in items:
            self.push(item)

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: Key) -> bool:
        return key in self._live

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self._live.values())

    def get(self, key: Key) -> WorkItem | None:
        return self._live.get(key)

    def push(self, item: WorkItem) -> None:
        if item.key in self._live:
            raise ValueError(f"{item.key} waits already")
        self._live[item.key] = item
        self.seconds += item.seconds
        self.devices += item.cell.devices
        self._by_devices[item.cell.devices] += 1
        if item.urgent:
            bisect.insort(self._urgent, item, key=lambda waiting: waiting.rank)
        else:
            heapq.heappush(self._heaps.setdefault(_heap_of(item), []), (item.rank, item.key))

    def remove(self, key: Key) -> WorkItem:
        item = self._live.pop(key)
        self.seconds = self.seconds - item.seconds if self._live else 0.0
        self.devices -= item.cell.devices
        self._by_devices[item.cell.devices] -= 1
        if item.urgent:
            self._urgent.remove(item)
        return item

    def sizes(self) -> set[int]:
        """Return how many devices items ask for: each number that occurs."""
        return {devices for devices, count in self._by_devices.items() if count}

    def next_group(self, possible: Callable[[int], bool]) -> WorkItem | None:
        """Return the group that is next in line, None where a single device is. It stays in the queue until `remove`.

        `possible`: whether so many devices can come together. Groups that cannot are passed over.
        """
        if self.sizes() <= {1}:
            return None
        for item in self._urgent:
            if not item.alone and item.cell.devices > 1 and possible(item.cell.devices):
                return item
        heads = self._heads(lambda devices: devices == 1 or possible(devices)).values()
        best = min(heads, key=lambda item: item.rank, default=None)
        return best if best is not None and best.cell.devices > 1 else None

    def take(
        self,
        device: Device,
        *,
        warm: Iterable[str] = (),
        devices: int = 1,
        elsewhere: Callable[[WorkItem], bool] = lambda item: False,
    ) -> WorkItem | None:
        """Remove and return the item to run on `device` next, None when nothing fits. It is never one that needs its
        node to itself (see `alone`), and never a group (see `next_group`).

        `warm`: models in the page cache of the device's node. `devices`: how many share this queue.
        `elsewhere`: whether an item that avoids this device has another one to go to.
        """
        for item in self._urgent:
            if (
                not item.alone
                and item.cell.devices == 1
                and not (device.uuid in item.avoid and elsewhere(item))
            ):
                return self.remove(item.key)
        heads = {model: item for (model, _), item in self._heads(lambda devices: devices == 1).items()}
        if not heads:
            return None
        best = min(heads.values(), key=lambda item: item.rank)
        if self.seconds > devices * best.seconds:  # else the tail: strictly the longest first
            fit = [heads[m] for m in warm if m in heads and heads[m].seconds >= _WARM_SHARE * best.seconds]
            best = min(fit, key=lambda item: item.rank, default=best)
        heapq.heappop(self._heaps[_heap_of(best)])
        return self.remove(best.key)

    def alone(self) -> WorkItem | None:
        """Return the first item that needs its node to itself. It stays in the queue until `remove`."""
        return next((item for item in self._urgent if item.alone), None)

    def _heads(self, wanted: Callable[[int], bool]) -> dict[tuple[str, int], WorkItem]:
        heads = {}
        for name, heap in self._heaps.items():
            if not wanted(name[1]):
                continue
            while heap and ((item := self._live.get(heap[0][1])) is None or item.urgent):
                heapq.heappop(heap)
            if heap:
                heads[name] = self._live[heap[0][1]]
        return heads


def _heap_of(item: WorkItem) -> tuple[str, int]:
    return item.cell.model.target, item.cell.devices
