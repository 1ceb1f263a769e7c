"""The processes of one cell, one for each of its devices: who they are, and how they find each other.

They run on one node. They meet in a folder of that node: torch's file store is in it, and their hosts tell each other there
how a process ended (`workers.host.peer_hosts`).
"""

import os
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_STORE = "store"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of one process among those of its cell. `index`: 0 to `count` - 1; 0 leads, its times and texts are the
    cell's. `rendezvous`: a name of no other attempt, on which all of them agree."""

    index: int = 0
    count: int = 1
    rendezvous: str = ""

    @property
    def folder(self) -> Path:
        """Where the processes of one attempt meet. Nothing else is in it."""
        return Path(tempfile.gettempdir()) / f"oomline-ranks-{os.getuid()}" / self.rendezvous

    def join(self, *, is_cpu: bool, timeout_s: float) -> None:
        """Start `torch.distributed` in this process, and wait for the others: gloo on CPUs, else NCCL on the first
        visible card. One alone starts nothing. `timeout_s`: of the meeting and of every collective call.

        Traffic stays on this machine. NVLink's multicast is left off: it needs rights that containers often lack.
        """
        if self.count == 1:
            return
        import torch
        from torch import distributed

        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}
        distributed.init_process_group(
            "gloo" if is_cpu else "nccl",
            init_method=f"file://{self.folder / _STORE}",
            rank=self.index,
            world_size=self.count,
            timeout=timedelta(seconds=timeout_s),
            device_id=None if is_cpu else torch.device("cuda", 0),
        )
        distributed.barrier()

    def leave(self) -> None:
        """Wait until the others have come as far, then end what `join` started."""
        if self.count == 1:
            return
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()


#: Of a cell on one device.
ALONE = Ranks()
