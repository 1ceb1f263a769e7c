"""A step as a CUDA graph: captured once, replayed for each token. Elsewhere the step is simply called."""

from collections.abc import Callable

import torch

from workers.engines.graph.cache import GraphCache
from workers.engines.graph.kernels.attend_blocks import CUT
from workers.engines.sizes import BLOCK

#: Tokens that one program of the full cache's attention reads; grids are captured for 1, 2, 4, ... of them.
SPAN = CUT.blocks * BLOCK


class Stage:
    """`function`, ready to run. Call it with the number of tokens the caches may hold by then.

    A graph fixes its grids, and attention over a growing cache needs a growing grid, so there is one capture per
    power of two of spans: at most a dozen, made before the first token. All share one memory pool.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self, caches: tuple[GraphCache, ...], most_tokens: int) -> None:
        """Runs `function` once, for what is compiled and set up at first use; the caller resets what it changed."""
        self._function()
        pool = None
        for tokens in sorted({size for cache in caches for size in cache.launch_sizes(SPAN, most_tokens)}):
            for cache in caches:
                cache.launch_over(tokens)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._function()
            pool = graph.pool()
            self._graphs[tokens] = graph

    def __call__(self, tokens: int) -> None:
        if not self._graphs:
            self._function()
        else:
            self._graphs[next(span for span in self._graphs if span >= tokens)].replay()
