"""What each cache policy offers this engine: a live cache for one model. Adding a policy is adding its line here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from workers.cell import Cell
from workers.engines.eager.ring import StreamingCache
from workers.engines.eager.streaming import streams
from workers.engines.session import ModeUnsupported
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import SCORE_CHUNK, STREAMING_CHUNK
from workers.modes import CachePolicy

Caching = Callable[[PreTrainedModel, Cell], AbstractContextManager[Cache | None]]


@contextmanager
def full(model: PreTrainedModel, cell: Cell) -> Iterator[Cache | None]:
    """transformers' own `DynamicCache`, as `generate` would make it: all that the layers keep (every token, a window,
    a state), keys and values grown by concatenation.

    None where the model makes its own cache: nothing can be read in chunks then.
    """
    if cell.speculation:
        refuse_drafting(type(model))
    if not takes_dynamic_cache(type(model)):
        if cell.prefill_chunk:
            raise ModeUnsupported(
                f"{type(model).__name__} makes its own cache, so that it reads its prompt in one pass: "
                "leave out `prefill_chunk`"
            )
        yield None
        return
    yield DynamicCache(config=model.config.get_text_config(decoder=True))


def takes_dynamic_cache(model_class: type[PreTrainedModel]) -> bool:
    """Whether forwards can be given a `DynamicCache` that knows how much it has read."""
    has_argument = "past_key_values" in signature(model_class.forward).parameters
    return has_argument and model_class._supports_default_dynamic_cache()


def refuse_drafting(model_class: type[PreTrainedModel]) -> None:
    """Raises `ModeUnsupported` where a rejected token cannot be taken back: a recurrent state has no earlier one."""
    if model_class._is_stateful or not takes_dynamic_cache(model_class):
        raise ModeUnsupported(
            f"{model_class.__name__} has no speculative mode: it keeps a recurrent state, "
            "which cannot take back a rejected token"
        )


def streaming(model: PreTrainedModel, cell: Cell) -> AbstractContextManager[StreamingCache]:
    """S sinks and W window tokens."""
    return streams(model, streaming_slots(cell))


def window(model: PreTrainedModel, cell: Cell) -> AbstractContextManager[StreamingCache]:
    """The same budget of S + W cached tokens, none of them a sink."""
    slots = streaming_slots(cell)
    return streams(model, RingSlots(sinks=0, window=slots.sinks + slots.window, slack=slots.slack))


#: `recompute` keeps no cache: `workers.engines.eager.recompute`.
CACHING: dict[CachePolicy, Caching] = {
    CachePolicy.FULL: full,
    CachePolicy.STREAMING: streaming,
    CachePolicy.WINDOW: window,
}


def streaming_slots(cell: Cell) -> RingSlots:
    """Room for the largest forward of the cell: gamma + 1 tokens to verify, or a chunk of the text."""
    assert cell.streaming is not None
    drafted = cell.speculation.gamma if cell.speculation else 0
    slack = max(drafted, (feed_chunk(cell) or 1) - 1)
    return RingSlots(sinks=cell.streaming.sinks, window=cell.streaming.window, slack=slack)


def feed_chunk(cell: Cell) -> int | None:
    """Tokens per forward while a text is read; None: all of it at once, which only the full cache can.

    A streaming prompt is read up to its last token before `generate` takes over, so a chunk is never larger.
    """
    if cell.workload == "score":
        return cell.prefill_chunk or SCORE_CHUNK
    if not cell.mode_spec.policy.bounded:
        return cell.prefill_chunk
    return max(1, min(cell.prefill_chunk or STREAMING_CHUNK, cell.prompt_tokens - 1))
