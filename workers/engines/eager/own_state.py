"""The state of a model that makes its own cache (Mamba, RWKV, MiniMax): what one forward hands to the next."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

#: The names under which such models return it.
_NAMES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class OwnState:
    """`latest`: what the newest forward returned; `generate` keeps the same object alive, so that holding it costs nothing."""

    def __init__(self) -> None:
        self.latest: object = None

    def _after(self, module: torch.nn.Module, args: object, output: object) -> None:
        states = (getattr(output, name, None) for name in _NAMES)
        self.latest = next((state for state in states if state is not None), None)


@contextmanager
def own_state_of(model: PreTrainedModel) -> Iterator[OwnState]:
    """Within the context, `latest` follows the forwards of `model`."""
    state = OwnState()
    hook = model.register_forward_hook(state._after)
    try:
        yield state
    finally:
        hook.remove()
