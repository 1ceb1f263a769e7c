"""The modes: a cache policy x a decoder. An engine (`workers.engines.eager`, `workers.engines.graph`) runs them.

Adding a mode is adding its line to `MODES`; adding a policy is one file in each engine that offers it.
"""

from dataclasses import dataclass
from enum import StrEnum


class CachePolicy(StrEnum):
    """What of the past a query may see, and at which positions."""

    FULL = "full"  #: every token; memory grows with the length
    STREAMING = "streaming"  #: S sinks + W window, cache-relative positions (StreamingLLM, arXiv:2309.17453)
    WINDOW = "window"  #: the same budget without sinks: the paper's failing control
    RECOMPUTE = (
        "recompute"  #: no cache: every token re-reads its window from scratch: the paper's slow control
    )

    @property
    def bounded(self) -> bool:
        """Whether memory is constant in the length."""
        return self is not CachePolicy.FULL


class Decoder(StrEnum):
    PLAIN = "plain"
    SPECULATIVE = "spec"


@dataclass(frozen=True, slots=True)
class Mode:
    name: str
    policy: CachePolicy
    decoder: Decoder
    workloads: frozenset[str] = frozenset({"generate", "score"})
    engines: frozenset[str] = frozenset({"eager", "graph"})

    @property
    def speculative(self) -> bool:
        return self.decoder is Decoder.SPECULATIVE


_GENERATE = frozenset({"generate"})
_SCORE = frozenset({"score"})

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("baseline", CachePolicy.FULL, Decoder.PLAIN),
        Mode("baseline+spec", CachePolicy.FULL, Decoder.SPECULATIVE, _GENERATE),
        Mode("streaming", CachePolicy.STREAMING, Decoder.PLAIN),
        Mode("streaming+spec", CachePolicy.STREAMING, Decoder.SPECULATIVE, _GENERATE),
        Mode("window", CachePolicy.WINDOW, Decoder.PLAIN),
        Mode("recompute", CachePolicy.RECOMPUTE, Decoder.PLAIN, _SCORE, frozenset({"eager"})),
    )
}
