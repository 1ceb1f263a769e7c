"""Where actors pin their progress for the driver to read: an actor of its own, on the driver's node.

The device actors run one synchronous call for the length of a cell, so they cannot be asked; they post instead,
fire and forget, once a second. When the board dies nothing but the news is lost.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.progress import Progress


class Board:
    """The latest progress of each slot since it was last read."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def post(self, slot: str, progress: Progress) -> None:
        self._latest[slot] = progress

    def read(self) -> dict[str, Progress]:
        latest, self._latest = self._latest, {}
        return latest


def start_board(run_id: str) -> Any:
    """A handle to a new board. It costs no CPU and ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "num_cpus": 0,
        "max_restarts": 0,
        "name": f"oomline-{run_id}-board",
        "scheduling_strategy": here,
    }
    return ray.remote(**options)(Board).remote()
