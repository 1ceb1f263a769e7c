"""Whether a model can stream, and by which rule each of its layers does. Model types are not named: the model is asked.

The rule (docs/modes.md) needs that positions reach attention through a rotation of queries and keys by angle = position *
frequency, and nowhere else; that frequencies stay when the text grows; and that a softmax over scores, as `weigh` computes
it, does the rest. Pairs may be any (half-split, interleaved, a part of each head), layers may differ, and rotate nothing.
"""

from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from workers.engines.eager.probe import LayerRule, listen
from workers.engines.eager.rerouted import Rotation, rotary_of
from workers.engines.eager.rope import half_split
from workers.engines.session import ModeUnsupported
from workers.engines.shared.refusals import NOTHING_TO_DROP


@dataclass(frozen=True, slots=True)
class Admission:
    """`layers`: None for one that attends to nothing, and whose state is of a constant size. `columns`, `movers`,
    `is_complex`: of the model's own rotation (`probe.Listened`)."""

    layers: tuple[LayerRule | None, ...]
    columns: dict[tuple[Any, ...], int] = field(default_factory=dict)
    movers: frozenset[Rotation] = frozenset()
    is_complex: bool = False


_ATTENDING = ("full_attention", "sliding_attention")
_NOTHING = "dummy"
_CONSTANT = ("linear_attention", "conv", "mamba", _NOTHING)
_known: "WeakKeyDictionary[PreTrainedModel, Admission]" = WeakKeyDictionary()


def rules_of(model: PreTrainedModel) -> Admission:
    """Raises `ModeUnsupported`, naming what the model lacks. Asked once for each model."""
    found = _known.get(model)
    if found is None:
        try:
            kinds = _kinds(model)
            has_values = not any(parameter.is_meta for parameter in model.parameters())
            found = _probed(model, kinds) if has_values else _assumed(model, kinds)
        except ModeUnsupported as refusal:
            raise ModeUnsupported(f"{type(model).__name__} cannot stream: {refusal}") from refusal
        finally:
            if model.device.type == "cuda":
                torch.cuda.empty_cache()  # what asking took is no part of the run, nor of its fragments
        _known[model] = found
    return found


def _kinds(model: PreTrainedModel) -> list[tuple[str, int | None]]:
    """By layer: what transformers caches of it, and its own window."""
    config = model.config.get_text_config(decoder=True)
    names, arguments = get_layer_types_and_kwargs(config)
    if isinstance(arguments, dict):  # transformers 5.17: once for all layers, without those that keep nothing
        names = [*names, *[_NOTHING] * (config.num_hidden_layers - len(names))]
        arguments = [arguments if name == "sliding_attention" else {} for name in names]
    for name in names:
        if name not in (*_ATTENDING, *_CONSTANT):
            raise ModeUnsupported(
                f"what its layers of kind {name!r} keep is neither every token nor a window"
            )
    if "full_attention" not in names:
        raise ModeUnsupported(NOTHING_TO_DROP)
    return [(name, of.get("sliding_window")) for name, of in zip(names, arguments, strict=True)]


def _probed(model: PreTrainedModel, kinds: list[tuple[str, int | None]]) -> Admission:
    listened = listen(model)
    if any(name == _NOTHING and layer in listened.layers for layer, (name, _) in enumerate(kinds)):
        raise ModeUnsupported("some of its layers attend to the keys of another layer")
    layers = tuple(
        None if name in _CONSTANT else _rule(listened.layers.get(layer), window)
        for layer, (name, window) in enumerate(kinds)
    )
    return Admission(layers, listened.columns, listened.movers, listened.is_complex)


def _rule(heard: LayerRule | None, window: int | None) -> LayerRule:
    if heard is None:
        raise ModeUnsupported("not every layer attends through transformers' attention interface")
    if heard.window is not None and heard.window != window:
        raise ModeUnsupported(f"a layer attends to a window of {heard.window} and keeps one of {window}")
    return replace(heard, window=window)


def _assumed(model: PreTrainedModel, kinds: list[tuple[str, int | None]]) -> Admission:
    """Of a model without values, which is asked for its memory alone: the commonest rotation, of the right size."""
    rotary = rotary_of(model)
    inv_freq_F = next((buffer for name, buffer in rotary.named_buffers() if name.endswith("inv_freq")), None)
    if inv_freq_F is None:
        raise ModeUnsupported("its rotary embedding has no frequencies (`inv_freq`)")
    rope = half_split(inv_freq_F, 1.0)
    by_kind = not hasattr(rotary, "inv_freq")
    return Admission(
        tuple(
            None if name in _CONSTANT else LayerRule(window, rope, (name,) if by_kind else ())
            for name, window in kinds
        )
    )
