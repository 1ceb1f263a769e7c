"""Passes progress from the device actors to the driver, through an actor on the driver's node.

A device actor runs one synchronous call for the length of a cell, so it cannot be asked. It posts its progress once a
second and waits for no answer. When the board dies, nothing but the news is lost.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.fleet.launch import launched
from workers.progress import Progress


class ProgressBoard:
    """Holds the latest progress of each slot since it was last read."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def post(self, slot: str, progress: Progress) -> None:
        self._latest[slot] = progress

    def read(self) -> dict[str, Progress]:
        latest, self._latest = self._latest, {}
        return latest


def start_board(run_id: str) -> Any:
    """Return a handle to a new board. It costs no CPU and ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "num_cpus": 0,
        "max_restarts": 0,
        "name": f"oomline-{run_id}-board",
        "scheduling_strategy": here,
        # One call a second and device would drown the cells in Ray's list of tasks.
        "enable_task_events": False,
    }
    return ray.remote(**options)(launched(ProgressBoard)).remote()
