"""Lists the cluster's nodes, as Ray's head tells them, without waiting for it.

A call to a head that is gone blocks until Ray ends the driver after 60 s, and no signal is handled meanwhile. The
devices go on, and their results could be journalled. So a thread of its own asks, and the driver's loop takes what is
known.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import ray

Nodes = Sequence[Mapping[str, Any]]
_LEAVE_S = 1.0


class NodeList:
    """Asks every `every_s` seconds, and at once after `hurry`. Waits for the first answer only."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._news: deque[Nodes] = deque([ray.nodes()], maxlen=1)
        self._wake = threading.Event()
        self._closed = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True, name="cluster-nodes")
        self._thread.start()

    def news(self) -> Nodes | None:
        """Return all nodes, dead ones too. None when no answer came since the last call. Raises what asking raised."""
        if self._failure is not None:
            raise self._failure
        return self._news.pop() if self._news else None

    def hurry(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """Stop asking. Does not wait for a head that does not answer."""
        self._closed = True
        self._wake.set()
        self._thread.join(_LEAVE_S)

    def _keep(self) -> None:
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._closed:
                return
            try:
                self._news.append(ray.nodes())
            except Exception as error:  # `news` raises it in the driver's loop
                self._failure = error
                return
