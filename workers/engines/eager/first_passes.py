"""An architecture whose own code fails as soon as it is given a text is refused, in one line, and not tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from workers.attempt import Phase
from workers.engines.session import ModeUnsupported
from workers.error_kinds import Raised, of_exception
from workers.models.config import one_line
from workers.outcome import Outcome

#: What Python and torch raise where code meets what it was not written for.
_OF_CODE = (TypeError, ValueError, AttributeError, LookupError, AssertionError, ImportError, RuntimeError)
#: Of a prompt, and of the first new token.
_FIRST = 2


@contextmanager
def refusing_first_passes(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, an error before the second pass of `model` has ended becomes `ModeUnsupported`: equal input
    would bring it again, on every device. Memory errors and faults of a GPU stay what they are.
    """
    ended = 0

    def count(*_: object) -> None:
        nonlocal ended
        ended += 1

    hook = model.register_forward_hook(count)
    try:
        yield
    except _OF_CODE as error:
        if ended >= _FIRST or not blames_the_code(error, model.device):
            raise
        raise ModeUnsupported(
            f"{type(model).__name__} fails in its {'second' if ended else 'first'} pass over a text: {one_line(error)}"
        ) from error
    finally:
        hook.remove()


def blames_the_code(error: Exception, device: torch.device) -> bool:
    """Whether it is neither a memory error nor a fault of a GPU."""
    kind = of_exception(Raised.of(error), Phase.PREFILL, is_cpu=device.type == "cpu")
    return kind is Outcome.CRASHED
