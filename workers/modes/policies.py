"""The cache policies. To add one: a value here, its cache in an engine, its lines in `docs/modes.md`."""

from workers.modes.installed import POLICIES_GROUP, with_installed
from workers.modes.parameters import Streaming
from workers.modes.policy import CachePolicy, Context, Layout

_EAGER = "workers.engines.eager.policies"
_GRAPH = "workers.engines.graph.policies"


def _every_token(parameters: None, tokens: int, rows: int, layer_window: int | None) -> int:
    return tokens if layer_window is None else min(tokens, layer_window - 1 + rows)


def _sinks_and_window(parameters: Streaming, tokens: int, rows: int, layer_window: int | None) -> int:
    """And the query itself. A layer with a window of its own keeps that."""
    if layer_window is not None:
        return layer_window
    return parameters.sinks + parameters.window + 1


def _as_many_by_score(parameters: Streaming, tokens: int, rows: int, layer_window: int | None) -> int:
    """What is kept between two passes. The tokens of a pass are beside it while it attends."""
    if layer_window is not None:
        return _every_token(None, tokens, rows, layer_window)
    return min(tokens, parameters.sinks + parameters.window)


def _none(parameters: Streaming, tokens: int, rows: int, layer_window: int | None) -> int:
    return 0


def _unbounded(parameters: None) -> None:
    return None


def _as_asked(parameters: Streaming) -> Context:
    return Context(parameters.sinks, parameters.window)


def _without_sinks(parameters: Streaming) -> Context:
    """The same number of cached tokens."""
    return Context(0, parameters.sinks + parameters.window)


#: Every token. transformers' `DynamicCache`, blocks in the graph engine.
FULL = CachePolicy(
    name="full",
    mode="baseline",
    grows=True,
    sees_all=True,
    absolute_positions=True,
    layout=Layout.APPENDED,
    kept=_every_token,
    context=_unbounded,
    engines={"eager": f"{_EAGER}:full", "graph": f"{_GRAPH}:full"},
    colour="#d55e00",
)
#: Every token, in tensors of the last length from the first pass on. transformers' `StaticCache`.
STATIC = CachePolicy(
    name="static",
    mode="static",
    grows=True,
    sees_all=True,
    absolute_positions=True,
    layout=Layout.FIXED,
    takes_back=False,
    kept=_every_token,
    context=_unbounded,
    engines={"eager": f"{_EAGER}:static"},
    colour="#b8a900",
)
#: S sinks and W window tokens at positions relative to the cache. StreamingLLM, arXiv:2309.17453.
STREAMING = CachePolicy(
    name="streaming",
    mode="streaming",
    grows=False,
    sees_all=False,
    parameters=Streaming,
    layout=Layout.RING,
    own_attention=True,
    kept=_sinks_and_window,
    context=_as_asked,
    engines={"eager": f"{_EAGER}:ring", "graph": f"{_GRAPH}:ring"},
    colour="#0a7ec2",
)
#: The same number of tokens without sinks: StreamingLLM's failing control.
WINDOW = CachePolicy(
    name="window",
    mode="window",
    grows=False,
    sees_all=False,
    parameters=Streaming,
    layout=Layout.RING,
    own_attention=True,
    kept=_sinks_and_window,
    context=_without_sinks,
    engines={"eager": f"{_EAGER}:ring", "graph": f"{_GRAPH}:ring"},
    colour="#c2679a",
    control=(5, 10, 0),
)
#: No cache: every token reads its window from scratch. StreamingLLM's slow control.
RECOMPUTE = CachePolicy(
    name="recompute",
    mode="recompute",
    grows=False,
    sees_all=False,
    parameters=Streaming,
    layout=Layout.NONE,
    takes_back=False,
    kept=_none,
    context=_without_sinks,
    engines={"eager": "workers.engines.eager.recompute:RecomputeSession"},
    decodes=False,
    colour="#0f9d75",
    control=(5, 10, 5),
)
#: As many tokens as streaming keeps, those to which the last query attends most. TOVA, arXiv:2401.06104.
TOVA = CachePolicy(
    name="tova",
    mode="tova",
    grows=False,
    sees_all=False,
    parameters=Streaming,
    absolute_positions=True,
    layout=Layout.APPENDED,
    takes_back=False,
    kept=_as_many_by_score,
    context=_without_sinks,
    engines={"eager": f"{_EAGER}:tova"},
    colour="#e69f00",
)
#: As many tokens as streaming keeps, those whose keys are least alike. KeyDiff, arXiv:2504.15364.
KEYDIFF = CachePolicy(
    name="keydiff",
    mode="keydiff",
    grows=False,
    sees_all=False,
    parameters=Streaming,
    absolute_positions=True,
    layout=Layout.APPENDED,
    takes_back=False,
    kept=_as_many_by_score,
    context=_without_sinks,
    engines={"eager": f"{_EAGER}:keydiff"},
    colour="#56b4e9",
)

POLICIES = with_installed(
    (FULL, STATIC, STREAMING, WINDOW, RECOMPUTE, TOVA, KEYDIFF), POLICIES_GROUP, CachePolicy
)
