"""A transformers model whose rotation and attention are ours for a while."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from workers.engines.session import ModeUnsupported

#: (queries, keys, cos, sin, ...) -> both, rotated; of some models one of the two at a time, or with complex angles
Rotation = Callable[..., Any]
_ROTATION = ("apply_rotary_pos_emb", "apply_rotary_emb")
_ANGLES = ("cos", "freqs")


def turned_at_once(rotation: Rotation) -> int:
    """How many of its first arguments a rotation turns: queries and keys, or one of them. The angles follow."""
    names = inspect.signature(rotation).parameters
    return next((at for at, name in enumerate(names) if name.startswith(_ANGLES)), 2)


def attentions_of(model: PreTrainedModel) -> list[Any]:
    """The modules that know which layer they are in. Attention is given the one that it belongs to."""
    return [module for module in model.base_model.modules() if hasattr(module, "layer_idx")]


def rotary_of(model: PreTrainedModel) -> Any:
    """The module through which attention learns positions. Raises `ModeUnsupported`."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        raise ModeUnsupported(
            "it has no rotary embedding (`rotary_emb`), through which the attention learns positions"
        )
    return rotary


@contextmanager
def rerouted(
    model: PreTrainedModel,
    rotary: nn.Module,
    rotation: Callable[[Rotation], Rotation],
    attention: str,
    state: object,
) -> Iterator[None]:
    """Within the context: `rotary` gives the angles, `rotation` of the model's own function turns queries and keys, and
    `attention` (a name that is registered with transformers) attends; the attribute `streaming` of the module that it
    is given is `state`. Afterwards the model is as before.
    """
    base, config = model.base_model, model.config.get_text_config(decoder=True)
    attentions = attentions_of(model)
    before = rotary_of(model), config._attn_implementation
    modules = {type(module).__module__ for module in attentions}
    functions = [
        (sys.modules[name], attribute, value)
        for name in modules
        for attribute, value in vars(sys.modules[name]).items()
        if attribute.startswith(_ROTATION) and callable(value)
    ]
    base.rotary_emb, config._attn_implementation = rotary, attention
    for module, name, own in functions:
        setattr(module, name, rotation(own))
    for attention_of_layer in attentions:
        object.__setattr__(attention_of_layer, "streaming", state)  # no submodule of it
    try:
        yield
    finally:
        for attention_of_layer in attentions:
            del attention_of_layer.__dict__["streaming"]
        base.rotary_emb, config._attn_implementation = before
        for module, name, own in functions:
            setattr(module, name, own)
