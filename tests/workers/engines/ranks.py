"""A function run by several processes that hold a model together: gloo, on CPUs."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_TIME_S = 120.0


def in_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(index, count, *args)` in `count` processes that have joined one group; what each gives, in their order."""
    context = multiprocessing.get_context("fork")  # torch is imported already
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(
                target=_one, args=(index, count, Path(folder) / "meet", pipes[index][1], function, args)
            )
            for index in range(count)
        ]
        for process in processes:
            process.start()
        try:
            found = [_received(receiver) for receiver, _ in pipes]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    for index, (error, _) in enumerate(found):
        assert error is None, f"rank {index}: {error}"
    return [value for _, value in found]


def _received(receiver: Any) -> tuple[str | None, Any]:
    return (
        pickle.loads(receiver.recv_bytes()) if receiver.poll(_TIME_S) else ("nothing within its time", None)
    )


def _one(index: int, count: int, meet: Path, sender: Any, function: Any, args: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=index, world_size=count)
        value = function(index, count, *args)
        distributed.barrier()
        sender.send_bytes(pickle.dumps((None, value)))  # tensors too: `send` would share their memory
        distributed.destroy_process_group()
    except BaseException:
        sender.send_bytes(pickle.dumps((traceback.format_exc(), None)))
        raise
