"""A step as a CUDA graph: captured once, replayed for each token. Elsewhere the step is simply called."""

from collections.abc import Callable

import torch


class Stage:
    """`function`, ready to run. All its launches are the same at every length, so one capture serves for all."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self) -> None:
        """Runs `function` once, for what is compiled and set up at first use; the caller resets what it changed."""
        self._function()
        self._graph = torch.cuda.CUDAGraph()
        # A thread of NCCL's asks for events at any time, which a capture of all threads would not allow.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local" if _has_peers() else "global"):
            self._function()

    def __call__(self) -> None:
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()


def _has_peers() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
