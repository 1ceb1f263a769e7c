"""The caches of this engine: one function for each, named by `workers.modes.policies`."""

from collections.abc import Callable

from workers.cell import Cell
from workers.engines.graph.by_window import CacheByWindow
from workers.engines.graph.cache import GraphCache
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.ring import RingCache
from workers.engines.graph.weights import Weights
from workers.engines.session import ModeUnsupported
from workers.engines.shared.refusals import NOTHING_TO_DROP
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import graph_slack
from workers.kv_dtype import AUTO, STORED_AS

#: (cell, model, sequences, the most tokens that the run can need) -> its cache
OpenCache = Callable[[Cell, Weights, int, int], GraphCache]


def full(cell: Cell, weights: Weights, batch: int, most_tokens: int) -> GraphCache:
    """Every token, in blocks; of layers with a window, the window."""

    def blocks(layers: int) -> GraphCache:
        if cell.kv_dtype != AUTO:
            return PackedCache(weights, batch, most_tokens, layers, STORED_AS[cell.kv_dtype])
        return FullCache(weights, batch, most_tokens, layers)

    return _by_window(cell, weights, batch, blocks)


def ring(cell: Cell, weights: Weights, batch: int, most_tokens: int) -> GraphCache:
    """The sinks and the window that the cell's policy asks for; of layers with a window, theirs.

    Raises `ModeUnsupported` where every layer has one: nothing would be dropped that the model itself keeps.
    """
    context = cell.mode_spec.policy.context(cell.streaming)
    assert context is not None
    slots = RingSlots(context.sinks, context.window, graph_slack(cell))
    if all(layer.attention.sliding_window is not None for layer in weights.layers):
        raise ModeUnsupported(f"the model cannot stream: {NOTHING_TO_DROP}")

    def rings(layers: int) -> GraphCache:
        return _ring(cell, weights, batch, slots, layers)

    return _by_window(cell, weights, batch, rings)


def _ring(cell: Cell, weights: Weights, batch: int, slots: RingSlots, layers: int) -> GraphCache:
    if cell.kv_dtype != AUTO:
        return PackedCache(weights, batch, 0, layers, STORED_AS[cell.kv_dtype], slots)
    return RingCache(weights, batch, slots, layers)


def _by_window(
    cell: Cell, weights: Weights, batch: int, of_policy: Callable[[int], GraphCache]
) -> GraphCache:
    """`of_policy`: number of layers -> the policy's cache of so many."""
    windows = [layer.attention.sliding_window for layer in weights.layers]
    kinds = sorted(set(windows), key=lambda window: window or 0)  # the policy's own first
    if cell.kv_dtype != AUTO and weights.layers[0].attention.latent is not None:
        raise ModeUnsupported(
            f"the graph engine keeps latents (MLA) in the model's dtype, not in {cell.kv_dtype}: its packed blocks have a scale for each channel of a head"
        )
    if kinds == [None]:
        return of_policy(len(windows))
    parts = tuple(
        of_policy(windows.count(None))
        if window is None
        else _ring(cell, weights, batch, RingSlots(0, window - 1, graph_slack(cell)), windows.count(window))
        for window in kinds
    )
    places = tuple(
        (kinds.index(window), windows[:layer].count(window)) for layer, window in enumerate(windows)
    )
    return CacheByWindow(parts, places, parts[0].context if None in kinds else None)
