"""Queues the items for one kind of device: longest first, with a preference for a model that the node has warm."""

import bisect
import heapq
from collections.abc import Callable, Iterable, Iterator

from orchestrator.sweep.work.item import Key, WorkItem
from workers.attempt import Device

#: A cell of a warm model may go before a longer one, if it is at least this share as long.
_WARM_SHARE = 0.5


class WorkQueue:
    """A heap per model and a short list of urgent items. Removal is lazy: pruning removes thousands at once."""

    def __init__(self, items: Iterable[WorkItem] = ()) -> None:
        self._live: dict[Key, WorkItem] = {}
        self._heaps: dict[str, list[tuple[tuple[float, int, int], Key]]] = {}
        self._urgent: list[WorkItem] = []
        self.seconds = 0.0
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
        if item.urgent:
            bisect.insort(self._urgent, item, key=lambda waiting: waiting.rank)
        else:
            heapq.heappush(self._heaps.setdefault(item.cell.model.target, []), (item.rank, item.key))

    def remove(self, key: Key) -> WorkItem:
        item = self._live.pop(key)
        self.seconds = self.seconds - item.seconds if self._live else 0.0
        if item.urgent:
            self._urgent.remove(item)
        return item

    def take(
        self,
        device: Device,
        *,
        warm: Iterable[str] = (),
        devices: int = 1,
        elsewhere: Callable[[WorkItem], bool] = lambda item: False,
    ) -> WorkItem | None:
        """Remove and return the item to run on `device` next, None when nothing fits. It is never one that needs its
        node to itself: see `alone`.

        `warm`: models in the page cache of the device's node. `devices`: how many share this queue.
        `elsewhere`: whether an item that avoids this device has another one to go to.
        """
        for item in self._urgent:
            if not item.alone and not (device.uuid in item.avoid and elsewhere(item)):
                return self.remove(item.key)
        heads = self._heads()
        if not heads:
            return None
        best = min(heads.values(), key=lambda item: item.rank)
        if self.seconds > devices * best.seconds:  # else the tail: strictly the longest first
            fit = [heads[m] for m in warm if m in heads and heads[m].seconds >= _WARM_SHARE * best.seconds]
            best = min(fit, key=lambda item: item.rank, default=best)
        heapq.heappop(self._heaps[best.cell.model.target])
        return self.remove(best.key)

    def alone(self) -> WorkItem | None:
        """Return the first item that needs its node to itself. It stays in the queue until `remove`."""
        return next((item for item in self._urgent if item.alone), None)

    def _heads(self) -> dict[str, WorkItem]:
        heads = {}
        for model, heap in self._heaps.items():
            while heap and ((item := self._live.get(heap[0][1])) is None or item.urgent):
                heapq.heappop(heap)
            if heap:
                heads[model] = self._live[heap[0][1]]
        return heads
