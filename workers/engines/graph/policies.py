"""The caches of this engine: one function for each, named by `workers.modes.policies`."""

from collections.abc import Callable

from workers.cell import Cell
from workers.engines.graph.cache import GraphCache
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.ring import RingCache
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import graph_slack

#: (cell, model, sequences, the most tokens that the run can need) -> its cache
OpenCache = Callable[[Cell, Weights, int, int], GraphCache]


def full(cell: Cell, weights: Weights, batch: int, most_tokens: int) -> FullCache:
    """Every token, in blocks."""
    return FullCache(weights, batch, most_tokens)


def ring(cell: Cell, weights: Weights, batch: int, most_tokens: int) -> RingCache:
    """The sinks and the window that the cell's policy asks for."""
    context = cell.mode_spec.policy.context(cell.streaming)
    assert context is not None
    return RingCache(weights, batch, RingSlots(context.sinks, context.window, graph_slack(cell)))
