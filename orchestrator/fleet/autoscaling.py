"""Tells an autoscaling cluster that there is work, by placeholder actors that pend until a node comes for them.

A pending actor is demand, and it ends with the job. `request_resources` would outlive a driver that is killed, and
keep the nodes that it asked for. On a cluster of fixed size a placeholder pends and costs nothing.
"""

from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.fleet.launch import launched

_MOST = 32  # asked for at a time
_REST_S = 60.0


class Placeholder:
    def where(self) -> str:
        """Return the node that it got."""
        return str(ray.get_runtime_context().get_node_id())


class Placeholders:
    """Holds pending actors of one GPU each. One that got a node has told all it can, and is ended."""

    def __init__(self) -> None:
        self._actor = ray.remote(num_gpus=1, num_cpus=0, max_restarts=0)(launched(Placeholder))
        self._pending: dict[Any, Any] = {}  # the answer it will give -> its handle
        self._rest_until = 0.0

    def keep(self, wanted: int, now: float) -> None:
        """Keep as many pending as devices are lacking, within bounds."""
        target = min(wanted, _MOST) if now >= self._rest_until else 0
        while len(self._pending) < target:
            placeholder = self._actor.remote()
            self._pending[placeholder.where.remote()] = placeholder
        while len(self._pending) > target:
            _, placeholder = self._pending.popitem()
            ray.kill(placeholder)

    def found_new_node(self, known: set[str], now: float) -> bool:
        """Return whether a placeholder got a node that is not among the `known`.

        One on a known node found a GPU that the fleet does not use for a reason: none pends for a while then.
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
