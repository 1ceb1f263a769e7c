"""The caches of this engine: one context manager for each, named by `workers.modes.policies`.

Within the context, the cache that it yields is one model's; the model is as before afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from workers.cell import Cell
from workers.engines.eager.evicting import EvictingCache, evicting
from workers.engines.eager.keydiff import KeyDiffLayer
from workers.engines.eager.ring import StreamingCache
from workers.engines.eager.stored import is_stored_otherwise, stored
from workers.engines.eager.streaming import streams
from workers.engines.eager.tova import noting_weights
from workers.engines.session import ModeUnsupported
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import eager_slack
from workers.kv_dtype import DEVICE
from workers.models.config import one_line

OpenCache = Callable[[PreTrainedModel, Cell], AbstractContextManager[Cache | None]]


@contextmanager
def full(model: PreTrainedModel, cell: Cell) -> Iterator[Cache | None]:
    """transformers' own `DynamicCache`, as `generate` would make it: all that the layers keep (every token, a window,
    a state), keys and values grown by concatenation.

    As the cell's `kv_dtype` and `kv_placement` ask, another of transformers' caches (`stored`).
    None where the model makes its own cache: nothing can be read in chunks then.
    """
    if cell.mode_spec.decoder.verifies:
        refuse_drafting(type(model))
    if is_stored_otherwise(cell):
        with stored(model, cell) as other:
            yield other
        return
    if not takes_dynamic_cache(type(model)):
        if cell.prefill_chunk:
            raise ModeUnsupported(
                f"{type(model).__name__} makes its own cache, so that it reads its prompt in one pass: "
                "leave out `prefill_chunk`"
            )
        yield None
        return
    try:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    except (
        Exception
    ) as error:  # some configs lack what it reads; transformers' own `generate` fails there, too
        raise ModeUnsupported(
            f"{type(model).__name__}: transformers makes no cache for it: {one_line(error)}"
        ) from error
    yield cache


@contextmanager
def static(model: PreTrainedModel, cell: Cell) -> Iterator[Cache]:
    """transformers' own `StaticCache` of as many tokens as the cell will read, its passes not compiled; offloaded where the cell's
    `kv_placement` is the host. Raises `ModeUnsupported`.
    """
    name, tokens = type(model).__name__, cell.workload_spec.positions(cell)
    if model._is_stateful or not takes_dynamic_cache(type(model)):
        raise ModeUnsupported(f"{name} has no static cache: it keeps a state, or makes its own cache")
    try:
        cache = StaticCache(model.config, tokens, offloading=cell.kv_placement != DEVICE)
    except Exception as error:  # layers that no static cache has, a config that lacks what it reads
        raise ModeUnsupported(
            f"{name}: transformers makes no static cache for it: {one_line(error)}"
        ) from error
    yield cache


def takes_dynamic_cache(model_class: type[PreTrainedModel]) -> bool:
    """Whether forwards can be given a `DynamicCache` that knows how much it has read."""
    has_argument = "past_key_values" in signature(model_class.forward).parameters
    return has_argument and model_class._supports_default_dynamic_cache()


def refuse_drafting(model_class: type[PreTrainedModel]) -> None:
    """Raises `ModeUnsupported` where a rejected token cannot be taken back: a recurrent state has no earlier one."""
    if model_class._is_stateful or not takes_dynamic_cache(model_class):
        keeps = "a recurrent state" if model_class._is_stateful else "a state of its own"
        raise ModeUnsupported(
            f"{model_class.__name__} has no speculative mode: it keeps {keeps}, which cannot take back a rejected token"
        )


def ring(model: PreTrainedModel, cell: Cell) -> AbstractContextManager[StreamingCache]:
    """The sinks and the window that the cell's policy asks for, with room for the cell's largest pass."""
    context = cell.mode_spec.policy.context(cell.streaming)
    assert context is not None
    if cell.mode_spec.decoder.verifies:
        refuse_drafting(type(model))
    return streams(model, RingSlots(context.sinks, context.window, eager_slack(cell)))


def tova(model: PreTrainedModel, cell: Cell) -> AbstractContextManager[EvictingCache]:
    """As many tokens as streaming keeps: those to which the last query attends most."""
    return noting_weights(model, _budget(cell))


def keydiff(model: PreTrainedModel, cell: Cell) -> AbstractContextManager[EvictingCache]:
    """As many tokens as streaming keeps, of each head: those whose keys are least alike."""
    return evicting(model, KeyDiffLayer, _budget(cell))


def _budget(cell: Cell) -> int:
    context = cell.mode_spec.policy.context(cell.streaming)
    assert context is not None
    return context.sinks + context.window
