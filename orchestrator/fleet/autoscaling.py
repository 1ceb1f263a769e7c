"""How an autoscaling cluster learns that there is work: actors that pend until a node comes for them.

A pending actor is demand, and it ends with the job; `request_resources` would outlive a killed driver and keep the
nodes it asked for. On a cluster of fixed size a scout pends and costs nothing.
"""

from typing import Any

import ray
from ray.exceptions import RayError

_MOST = 32  # asked for at a time
_REST_S = 60.0


class Scout:
    def where(self) -> str:
        """The node that it got."""
        return str(ray.get_runtime_context().get_node_id())


class Scouts:
    """Pending actors of one GPU each. One that got a place has told all it can and is let go."""

    def __init__(self) -> None:
        self._pending: dict[Any, Any] = {}  # the answer it will give -> its handle
        self._rest_until = 0.0

    def keep(self, wanted: int, now: float) -> None:
        """As many as devices are lacking, within bounds."""
        target = min(wanted, _MOST) if now >= self._rest_until else 0
        while len(self._pending) < target:
            scout = ray.remote(num_gpus=1, num_cpus=0, max_restarts=0)(Scout).remote()
            self._pending[scout.where.remote()] = scout
        while len(self._pending) > target:
            _, scout = self._pending.popitem()
            ray.kill(scout)

    def arrivals(self, known: set[str], now: float) -> bool:
        """Whether a scout got a place on a node that is not among the `known`.

        One on a known node found a GPU that the fleet has its reasons to leave alone: no more scouts for a while.
        """
        if not self._pending:
            return False
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        found = False
        for ref in ready:
            ray.kill(self._pending.pop(ref))
            try:
                node = ray.get(ref)
            except RayError:
                continue
            if node in known:
                self._rest_until = now + _REST_S
            else:
                found = True
        return found

    def close(self) -> None:
        self.keep(0, 0.0)
