"""How `generate` finds its tokens: one context manager for each decoder, named by `workers.modes.decoders`.

Within the context a model's `generate` decodes by it. A decoder that verifies goes through transformers' assisted
decoding, with a candidate generator of its own (`draft`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from workers.cell import Cell
from workers.engines.eager.clock import ForwardClock
from workers.engines.eager.draft import Asked, Blind, Draft, Rounds, drafting
from workers.engines.shared.oracle import Oracle


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Decoding:
    """What an open decoder adds to a run.

    `arguments`, `settings`: of `generate`, and of its generation config. `readers`: models that read the prompt beside
    the target, with their caches. `figures`: fields of `Generated`, to be asked for when the run has ended.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    readers: tuple[tuple[PreTrainedModel, Cache], ...] = ()
    figures: Callable[[], dict[str, Any]] = _nothing


@dataclass(frozen=True, slots=True)
class DecoderRun:
    """What a decoder is given. `open_cache`: a cache of the cell's policy for a model. `oracle`: of injected acceptance."""

    cell: Cell
    target: PreTrainedModel
    draft: PreTrainedModel | None
    open_cache: Callable[[PreTrainedModel], AbstractContextManager[Cache | None]]
    oracle: Oracle | None


OpenDecoder = Callable[[DecoderRun], AbstractContextManager[Decoding]]


@contextmanager
def plain(run: DecoderRun) -> Iterator[Decoding]:
    """One token a pass."""
    yield Decoding()


@contextmanager
def speculative(run: DecoderRun) -> Iterator[Decoding]:
    """A draft model proposes gamma tokens, the target verifies them in one pass."""
    draft, speculation = run.draft, run.cell.speculation
    assert draft is not None
    assert speculation is not None
    rounds = Rounds()
    with run.open_cache(draft) as cache:
        assert cache is not None

        def candidates(asked: Asked) -> Draft:
            return Draft(asked, speculation.gamma, cache, rounds, run.oracle)

        width = speculation.gamma + 1
        with (
            drafting(run.target, candidates),
            # A draft reads two tokens after a round that was accepted whole, one otherwise.
            ForwardClock(draft, 1, 2).running() as draft_clock,
            ForwardClock(run.target, width, width).running() as verify_clock,
        ):
            yield Decoding(
                arguments={"assistant_model": draft},
                readers=((draft, cache),),
                figures=lambda: {
                    **rounds.figures(),
                    "draft_step_s": draft_clock.median_s(),
                    "verify_step_s": verify_clock.median_s(),
                },
            )


@contextmanager
def recording(run: DecoderRun) -> Iterator[Decoding]:
    """Every proposal is token 0, without a draft: how an oracle's recording is made (`draft.Blind`)."""
    speculation = run.cell.speculation
    assert speculation is not None
    with drafting(run.target, lambda asked: Blind(asked, speculation.gamma)):
        yield Decoding(settings={"prompt_lookup_num_tokens": speculation.gamma})
