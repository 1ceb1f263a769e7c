"""Layers that are alike: of each kind a few are run, and what one of them does in a pass the others do too.

Two layers are of one kind where their modules have equal types, sizes and settings, and their model's config says the same of
both. The first two of a kind are run, as a library may take memory in the first, and the last of all.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from workers.rehearsal.passes import Label, PassTrace
from workers.rehearsal.storages import StorageLog

#: What tells a layer apart from the others, and from nothing else.
_PLACES = ("layer_idx", "layer_index", "layer_id", "layer_number")
_PLAIN = (bool, int, float, str, type(None), torch.dtype)
#: More layers than this share of all are not worth the trouble.
_WORTH = 0.7


class DiffersByLayer(Exception):
    """What one layer does is not what another would do."""


class SeenPass(NamedTuple):
    """`marks`: where in `trace.events` each layer begins, by its number, as they came."""

    trace: PassTrace
    marks: tuple[tuple[int, int], ...]


class AlikeLayers:
    """The decoder layers of `model`. `marks`: how long `log.events` was when a layer began, and its number; the rehearsal
    clears them.
    """

    def __init__(self, model: PreTrainedModel, log: StorageLog) -> None:
        self.marks: list[tuple[int, int]] = []
        self._layers = _decoder_layers(model)
        self._returns_tuple = False
        kinds: dict[Hashable, list[int]] = {}
        for number, layer in enumerate(self._layers):
            kinds.setdefault(_kind(model, layer, number, len(self._layers)), []).append(number)
        run = {number for numbers in kinds.values() for number in numbers[:2]} | {len(self._layers) - 1}
        #: The layer that is run for another one.
        self.stand_ins: dict[int, int] = {}
        if len(run) <= _WORTH * len(self._layers):
            for numbers in kinds.values():
                self.stand_ins |= {number: numbers[1] for number in numbers if number not in run}
        if self.stand_ins:
            for number, layer in enumerate(self._layers):
                layer.register_forward_pre_hook(partial(self._mark, log, number))
            self._layers[-1].register_forward_hook(self._see_output)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Within the context, layers that have a stand-in hand on what they get."""
        for number in self.stand_ins:
            self._layers[number].forward = self._through
        try:
            yield
        finally:
            for number in self.stand_ins:
                del self._layers[number].forward

    def _mark(self, log: StorageLog, number: int, *_: object) -> None:
        self.marks.append((len(log.events), number))

    def _see_output(self, _: object, __: object, output: object) -> None:
        self._returns_tuple = isinstance(output, tuple)

    def _through(self, hidden_states: torch.Tensor, *_: object, **__: object) -> Any:
        return (hidden_states,) if self._returns_tuple else hidden_states

    def whole(self, seen: SeenPass) -> PassTrace:
        """The pass of all layers, from one in which some were skipped. Raises `DiffersByLayer`."""
        if [number for _, number in seen.marks] != list(range(len(self._layers))):
            raise DiffersByLayer
        return _Whole(seen, self.stand_ins).trace()


class _Whole:
    """Puts a pass together. A segment: a layer's events, to the beginning of the next layer or the end of the pass."""

    def __init__(self, seen: SeenPass, stand_ins: dict[int, int]) -> None:
        self._seen, self._stand_ins = seen.trace, stand_ins
        begins = [position for position, _ in seen.marks]
        self._segments = [
            seen.trace.events[begin:end]
            for begin, end in zip(begins, [*begins[1:], len(seen.trace.events)], strict=True)
        ]
        self._before = seen.trace.events[: begins[0]]
        self._labels = dict(seen.trace.leaves)
        self._sizes: list[int] = []
        self._events: list[int] = []
        self._frees: list[Label] = []
        self._leaves: list[tuple[int, Label]] = []
        self._outer: dict[int, int] = {}  # what is there before the first layer

    def trace(self) -> PassTrace:
        self._outer = self._put(self._before, None, None, {})
        handed: list[int] = []  # what the segment before leaves to this one
        for number in range(len(self._segments)):
            source = self._stand_ins.get(number, number)
            if source != number and self._segments[number]:
                raise DiffersByLayer
            before = self._handed(self._run_before(source))
            if len(before) != len(handed):
                raise DiffersByLayer
            own = self._put(self._segments[source], source, number, dict(zip(before, handed, strict=True)))
            handed = [own[each] for each in self._handed(source)]
        return PassTrace(
            sizes=tuple(self._sizes),
            events=tuple(self._events),
            frees=tuple(self._frees),
            leaves=tuple(sorted(self._leaves)),
            renames=tuple(sorted(self._renames())),
        )

    def _run_before(self, number: int) -> int | None:
        return max((other for other in range(number) if other not in self._stand_ins), default=None)

    def _handed(self, number: int | None) -> list[int]:
        """What a layer allocates and leaves to the next one."""
        segment = () if number is None else self._segments[number]
        freed = {~event >> 1 for event in segment if event < 0 and not ~event & 1}
        return [event for event in segment if event >= 0 and event not in freed and event not in self._labels]

    def _put(
        self, segment: tuple[int, ...], source: int | None, number: int | None, handed: dict[int, int]
    ) -> dict[int, int]:
        """Append `segment`, of layer `source`, as layer `number`'s. Returns the names of what it allocates."""
        own: dict[int, int] = {}
        waiting = set(handed)
        for event in segment:
            if event >= 0:
                own[event] = len(self._sizes)
                self._events.append(own[event])
                self._sizes.append(self._seen.sizes[event])
                if event in self._labels:
                    self._leaves.append((own[event], _relabelled(self._labels[event], source, number)))
            elif ~event & 1:
                self._events.append(~(2 * len(self._frees) + 1))
                self._frees.append(_relabelled(self._seen.frees[~event >> 1], source, number))
            else:
                freed = ~event >> 1
                waiting.discard(freed)
                known = own if freed in own else handed if freed in handed else self._outer
                if freed not in known or (known is self._outer and source != number):
                    raise DiffersByLayer
                self._events.append(~(2 * known[freed]))
        if waiting:
            raise DiffersByLayer
        return own

    def _renames(self) -> Iterator[tuple[Label, Label]]:
        yield from self._seen.renames
        for number, source in self._stand_ins.items():
            for labels in self._seen.renames:
                if _layer_of(labels[0]) == source:
                    yield _relabelled(labels[0], source, number), _relabelled(labels[1], source, number)


def cache_label(cache: int, layer: int, place: int) -> Label:
    return f"cache {cache} {layer} {place}"


def _layer_of(label: Label) -> int | None:
    parts = label.split()
    return int(parts[2]) if parts[0] == "cache" and len(parts) == 4 else None


def _relabelled(label: Label, source: int | None, number: int | None) -> Label:
    if source == number:
        return label
    if _layer_of(label) != source:
        raise DiffersByLayer
    cache, _, place = label.split()[1:]
    return f"cache {cache} {number} {place}"


def _decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Empty where it is not clear which they are."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return list(lists[0]) if len(lists) == 1 else []


def _kind(model: PreTrainedModel, layer: torch.nn.Module, number: int, count: int) -> Hashable:
    parts: list[Hashable] = []
    for name, module in layer.named_modules():
        plain = [
            (key, repr(value))
            for key, value in vars(module).items()
            if key not in _PLACES and isinstance(value, _PLAIN)
        ]
        parts.append((name, type(module), *sorted(plain)))
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        parts.append((name, tuple(tensor.shape), tensor.dtype))
    config = model.config.get_text_config(decoder=True)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            parts.append((name, repr(value[number])))
    return tuple(parts)
