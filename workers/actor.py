"""Defines the Ray actor of one device: a `DeviceHost` that is called through Ray. The fleet adds Ray's options.

It is a plain class, so that importing it needs no running Ray. The options are `num_gpus=1` (or a CPU slot),
`max_restarts=0`, `max_task_retries=0`, and no concurrency groups: `run` must stay on the main thread, with which its
processes end.
"""

import os
from typing import Any

from workers.attempt import Attempt, Device
from workers.cell import Lease
from workers.host.device_host import DeviceHost
from workers.ranks import ALONE, Ranks


class DeviceActor:
    """`board`: a handle of an actor with `post(slot, progress)`. Progress is posted once a second; no answer is awaited.

    Torch gets as many threads per cell as OMP_NUM_THREADS says where this actor runs, else one.
    Raises in `__init__` when the device is missing or in use by others.
    """

    def __init__(self, slot: str, cpu_total_bytes: int | None = None, board: Any = None) -> None:
        self._slot = slot
        self._board = board
        self._host = DeviceHost(slot, cpu_total_bytes, threads=int(os.environ.get("OMP_NUM_THREADS", "1")))

    def describe(self) -> Device:
        return self._host.describe()

    def run(self, lease: Lease, ranks: Ranks = ALONE) -> Attempt:
        """`ranks`: which of the processes of a cell on several devices is this device's. The first one's progress is the
        cell's."""
        if self._board is None or ranks.index > 0:
            return self._host.run(lease, ranks=ranks)
        return self._host.run(lease, lambda progress: self._board.post.remote(self._slot, progress), ranks)
