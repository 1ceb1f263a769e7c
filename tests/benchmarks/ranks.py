"""Processes of a benchmark that hold a model together, one for each card, and the rows that they send."""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from workers.engines.graph import peers
from workers.models.shard import Shard

MiB = 2**20
#: Without NVLink multicast.
_SETTINGS = {"NCCL_NVLS_ENABLE": "0"}


class Rank:
    """One process: its card, its shard, and the rows that it sends."""

    def __init__(
        self, index: int, count: int, args: argparse.Namespace, send: Callable[[dict[str, Any]], None]
    ) -> None:
        self.index, self.count, self.args, self._send = index, count, args, send
        self.device = torch.device("cpu") if args.cpu else torch.device("cuda", 0)
        self.shard = Shard(index, count) if count > 1 else None
        self.nccl_bytes = 0
        self.context_bytes = 0

    def row(self, part: str, name: str, value: float | None, unit: str, **more: Any) -> None:
        kind = "cpu" if self.args.cpu else torch.cuda.get_device_name(0)
        self._send(
            {
                "devices": self.count,
                "rank": self.index,
                "card": kind,
                "part": part,
                "name": name,
                "value": value,
                "unit": unit,
            }
            | more
        )

    def used_bytes(self) -> int:
        """Of the card, as its driver counts."""
        if self.args.cpu:
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    def join(self, meet: Path) -> None:
        """The context, then the group; what NCCL takes of the card stands apart."""
        if not self.args.cpu:
            from workers.host.child.cuda import load_kernels

            self.context_bytes = load_kernels(getattr(torch, self.args.dtype), 0)
        if self.count == 1:
            return
        before = self.used_bytes()
        distributed.init_process_group(
            "gloo" if self.args.cpu else "nccl", init_method=f"file://{meet}", rank=self.index, world_size=self.count,
            device_id=None if self.args.cpu else self.device,
        )  # fmt: skip
        ones_NV = torch.ones(1, 4096, dtype=getattr(torch, self.args.dtype), device=self.device)
        everyone = peers.Peers(self.index, self.count)
        everyone.gather(everyone.sum(ones_NV))
        if not self.args.cpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        self.nccl_bytes = self.used_bytes() - before
        self.row("sums", "device memory that NCCL takes", self.nccl_bytes / MiB, "MiB")


def measure(
    run_rank: Callable[..., None], args: argparse.Namespace, count: int, until: float
) -> list[dict[str, Any]]:
    """All parts on `count` cards, in processes of their own, which end at `until`."""
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        ranks = [
            context.Process(
                target=run_rank, args=(index, count, args, Path(folder) / "meet", pipes[index][1])
            )
            for index in range(count)
        ]
        for index, process in enumerate(ranks):
            os.environ.update(CUDA_VISIBLE_DEVICES=str(index), **_SETTINGS)
            process.start()
        going = {receiver for receiver, _ in pipes}
        for _, sender in pipes:
            sender.close()
        while going and time.monotonic() < until:
            for receiver in multiprocessing.connection.wait(list(going), timeout=5.0):
                try:
                    row = receiver.recv()  # type: ignore[union-attr]
                except EOFError:
                    row = None
                if row is None:
                    going.discard(receiver)  # type: ignore[arg-type]
                    continue
                rows.append(row)
                print(json.dumps(row), flush=True)
        for process in ranks:
            process.join(5)
            process.kill()
    return rows
