"""What a cache policy says of itself. Engines, predictions, plan and report ask it; nothing compares its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from workers.modes.parameters import Streaming

#: Drawn, left out, and where the pattern begins, in pixels along a curve.
Dash = tuple[float, float, float]


class Layout(Enum):
    """How the keys and values of one layer lie in memory."""

    APPENDED = (
        auto()
    )  #: eager: one tensor, copied into a longer one by each pass. graph: blocks, never copied
    RING = auto()  #: allocated once, written in place, read by the engine's own attention
    NONE = auto()  #: nothing is kept: each token reads again what it sees


class Context(NamedTuple):
    """What a query sees besides itself: the first `sinks` tokens, and the last `window` of those after them."""

    sinks: int
    window: int


def _numbers(numbers: int, width: int) -> int:
    return numbers * width


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """What is kept of the past.

    `name`: in the column `cache_policy`. `mode`: its mode's name without a decoder's suffix.
    `grows`: memory grows with the length. `sees_all`: a query sees every token before it.
    `absolute_positions`: positions go on with the text, and end where a table of learned positions does.
    `own_attention`: the eager engine reads the cache with an attention of its own, not with the model's.
    `takes_back`: a token that was read can be taken back, which a decoder that verifies drafts needs.
    `parameters`: the type of what a cell carries for it, None: nothing.
    `context(parameters)`: what is read back from the live cache and compared; None: no bound in effect.
    `kept(parameters, tokens, rows, layer_window)`: tokens that one layer keeps once `tokens` were read, `rows` of them in
    the last pass; `layer_window`: the layer's own sliding window, None: it has none. A ring has its slack beside them.
    `token_bytes(numbers, width)`: bytes of one kept token's keys (or values) in one layer, `numbers` of them, in a model
    whose numbers have `width` bytes.
    `engines`: engine -> `module:function` that opens its cache there. `workloads`: what it is offered for.
    `colour`: of its curves; one of Okabe and Ito's, told apart by colour-blind eyes and on light and dark paper. `control`: it is there to be compared with, and this dash marks it in pictures of quality,
    where curves that agree lie on one another: it leaves room for other dashes and for the curve below.
    """

    name: str
    mode: str
    grows: bool
    sees_all: bool
    layout: Layout
    kept: Callable[[Streaming | None, int, int, int | None], int]
    context: Callable[[Streaming | None], Context | None]
    engines: Mapping[str, str]
    colour: str
    parameters: type[Streaming] | None = None
    token_bytes: Callable[[int, int], int] = _numbers
    absolute_positions: bool = False
    own_attention: bool = False
    takes_back: bool = True
    workloads: frozenset[str] = frozenset({"generate", "score"})
    control: Dash | None = None
