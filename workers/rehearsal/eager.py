"""The eager engine's passes, rehearsed at any length: its own session and its own loops, on models without memory.

B batch, T tokens.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.utils import logging

from workers.cell import Cell, ModelRef
from workers.engines.eager.policies import OpenCache, takes_dynamic_cache
from workers.engines.eager.score import score_through, skim
from workers.engines.eager.session import CachedSession
from workers.engines.session import ModeUnsupported, Unmeasured
from workers.engines.shared.implementations import implementation
from workers.engines.sizes import eager_chunk
from workers.models.build import from_config
from workers.models.cache_tensors import cache_tensors
from workers.models.config import vocab_size
from workers.models.load import LoadedModel, eos_ids_of, read_config
from workers.models.source import RANDOM
from workers.modes import Layout
from workers.rehearsal.alike import AlikeLayers, DiffersByLayer, SeenPass, cache_label
from workers.rehearsal.filling import Filling, does_grow, is_recurrent
from workers.rehearsal.passes import Generation, Label, ModeRefused, NotRehearsable, PassTrace
from workers.rehearsal.stand_in import CUDA, standing_in
from workers.rehearsal.storages import StorageLog

#: Neither padding nor an end of text, whatever the vocabulary.
_NO_ID = -(2**40)
#: Tokens after which a state of one size is what it is after any number of them.
_STATE = 64
#: What torch keeps on a card once weights are drawn there: a number, before the first of them. Torch 2.11, 31 recorded runs.
_DRAWN_BYTES = 4
Readers = list[tuple[PreTrainedModel, Cache]]


class _Enough(Exception):
    """Enough passes were seen."""


class EagerRehearsal:
    """One cell's passes, by length. Its model names are read as the engine reads them; no weight is.

    Raises `NotRehearsable`, here and in each rehearsal, where the engine's code needs real values.
    """

    def __init__(self, cell: Cell) -> None:
        # The oracle's own run comes before and frees what it took.
        speculation = cell.speculation and dataclasses.replace(cell.speculation, acceptance=None)
        self._cell = dataclasses.replace(cell, speculation=speculation)
        self._batch = cell.batch_size
        policy, decoder = cell.mode_spec.policy, cell.mode_spec.decoder
        if policy.layout is Layout.NONE:
            raise NotRehearsable(f"{cell.mode}: no passes over a cache")
        names = [cell.model.target]
        if decoder.needs_draft and cell.model.draft is not None:
            names.append(cell.model.draft)
        with _refusals(), _without_remarks():
            self._open_cache: OpenCache = implementation(policy, "eager")
            self._open_decoder = implementation(decoder, "eager")
            self.weights, models = _load(names, cell.model)
        self._models = models
        tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
        self._log = StorageLog(tensors)
        self._filling = Filling(self._log)
        self._alike = AlikeLayers(models[0], self._log)
        # Of kinds of passes: whether those of all layers follow from those of a few.
        self._follows: dict[Hashable, bool] = {}
        self._loaded = [_loaded(name, model) for name, model in zip(names, models, strict=True)]

    @property
    def reads_in_chunks(self) -> bool:
        return all(takes_dynamic_cache(type(model)) for model in self._models)

    def chunk(self, position: int, tokens: int) -> PassTrace:
        """One pass over `tokens` of the prompt behind `position` that were read before."""
        return self._seen(("chunk", position > 0), lambda: [self._chunk(position, tokens)])[0]

    def _chunk(self, position: int, tokens: int) -> SeenPass:
        with self._running(), self._caches() as readers:
            ids_BT = torch.empty(self._batch, tokens, dtype=torch.int64, device=CUDA)
            if position:
                for model, cache in readers:
                    self._filling.fill(model, cache, self._batch, position)
            cut = _Cut(self._log, readers, self._alike.marks)
            skim(readers, ids_BT, tokens)
            return cut.passed()

    def scored(self, position: int, tokens: int) -> PassTrace:
        """One pass over `tokens` tokens of a text that is scored, behind `position` that were: to the beginning of the next
        one, or to the end of the text, where it is shorter than a whole pass.
        """
        return self._seen(("scored", position > 0), lambda: [self._scored(position, tokens)])[0]

    def _scored(self, position: int, tokens: int) -> SeenPass:
        chunk = eager_chunk(self._cell)
        assert chunk is not None
        earlier = min(position, chunk)  # the pass before, whose logits are still there
        passes = _Passes(self._log, self._alike.marks, skip=0, passes=2 if earlier else 1)
        following = chunk if tokens == chunk else 0
        with self._running(), self._caches() as readers:
            model, cache = readers[0]
            if position > earlier:
                self._filling.fill(model, cache, 1, position - earlier)
            ids_T = torch.zeros(earlier + tokens + following + 1, dtype=torch.int64, device=CUDA)
            passes.readers = readers[:1]
            passes.begin()
            hook = model.register_forward_pre_hook(passes.before_forward)
            try:
                score_through(model, cache, ids_T, chunk, Unmeasured())
                passes.end()
            except _Enough:
                pass
            finally:
                hook.remove()
        return passes.seen[-1]

    def start(self, prompt_tokens: int, *, read: bool) -> PassTrace:
        """Of a generation from its call to the end of its first pass. `read` as in `generation`."""
        return self._generate(prompt_tokens, read, 1)[0]

    def step(self, position: int) -> PassTrace:
        """A pass of a generation, about `position` tokens behind the beginning of the text."""
        if not self.reads_in_chunks:
            # What such models make is a state of one size; those among them that grow are read to the end.
            constant = all(type(model)._is_stateful for model in self._models)
            return self.generation(min(position, _STATE) if constant else position, read=False).steady
        with self._running(), self._caches() as readers:
            recurrent = any(is_recurrent(cache) for _, cache in readers)
            grows = any(does_grow(cache) for _, cache in readers)
        return self.generation(position if grows else min(position, _STATE), read=recurrent).steady

    def generation(self, prompt_tokens: int, *, read: bool) -> Generation:
        """`read`: all but the prompt's last token are in the caches already; else the session reads the prompt."""
        start, first, steady, again = self._generate(prompt_tokens, read, 4)
        if not steady.is_like(again):
            raise NotRehearsable("its steps have no steady state after two")
        return Generation(start, first, steady)

    def _generate(self, prompt_tokens: int, read: bool, passes: int) -> list[PassTrace]:
        kind = ("generation", read, passes)
        return self._seen(kind, lambda: self._generated(prompt_tokens, read, passes))

    def _seen(self, kind: Hashable, run: Callable[[], list[SeenPass]]) -> list[PassTrace]:
        """The passes of `run`. After the first time of a `kind`, layers that are alike are run once, if that first time both
        ways gave the same.
        """
        if self._follows.get(kind):
            with contextlib.suppress(DiffersByLayer), self._alike.skipping():
                return [self._alike.whole(seen) for seen in run()]
        traces = [seen.trace for seen in run()]
        if self._alike.stand_ins and len(self._models) == 1 and kind not in self._follows:
            self._follows[kind] = False
            with contextlib.suppress(DiffersByLayer, NotRehearsable), self._alike.skipping():
                self._follows[kind] = [self._alike.whole(seen) for seen in run()] == traces
        return traces

    def _generated(self, prompt_tokens: int, read: bool, passes: int) -> list[SeenPass]:
        grows = self._cell.mode_spec.policy.grows
        cell = dataclasses.replace(
            self._cell,
            prompt_tokens=prompt_tokens,
            prefill_chunk=None if grows else self._cell.prefill_chunk,
        )
        chunk = eager_chunk(cell)
        fed = 0 if chunk is None else -(-(prompt_tokens - 1) // chunk)
        cuts = _Passes(self._log, self._alike.marks, skip=fed, passes=passes)

        @contextmanager
        def filled(model: PreTrainedModel, cell: Cell) -> Iterator[Cache | None]:
            with self._open_cache(model, cell) as cache:
                if cache is not None and cuts.is_open:
                    cuts.readers.append((model, cache))
                    if read and prompt_tokens > 1:
                        self._filling.fill(model, cache, self._batch, prompt_tokens - 1)
                if cuts.is_open:
                    cuts.begin()
                yield cache

        with self._running():
            session = CachedSession(cell, *self._both(), filled, self._open_decoder)
            cuts.is_open = True
            ids_BT = torch.full((1, 1), _NO_ID).expand(self._batch, prompt_tokens)
            hook = self._models[0].register_forward_pre_hook(cuts.before_forward)
            try:
                session.generate(ids_BT, 8, Unmeasured())
            except _Enough:
                pass
            finally:
                hook.remove()
        return cuts.seen

    def _both(self) -> tuple[LoadedModel, LoadedModel | None]:
        return self._loaded[0], self._loaded[1] if len(self._loaded) > 1 else None

    @contextmanager
    def _caches(self) -> Iterator[Readers]:
        with self._open_cache(self._models[0], self._cell) as first:
            if first is None:
                raise NotRehearsable(f"{type(self._models[0]).__name__} makes its own cache")
            if len(self._models) == 1:
                yield [(self._models[0], first)]
                return
            with self._open_cache(self._models[1], self._cell) as second:
                assert second is not None
                yield [(self._models[0], first), (self._models[1], second)]

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._log.clear()
        self._alike.marks.clear()
        with _refusals(), _without_remarks(), torch.no_grad(), standing_in(), self._log:
            yield


class _Cut:
    """The moment between two passes: what is alive, by name."""

    def __init__(self, log: StorageLog, readers: Readers, marks: list[tuple[int, int]]) -> None:
        self._log = log
        self._readers = readers
        self._marks = marks
        self._at = len(log.events)
        self._labels = self._alive()

    def passed(self) -> SeenPass:
        """What happened since, up to now."""
        events, makers = self._log.events, self._log.makers
        sizes: list[int] = []
        own: dict[int, int] = {}
        frees: list[Label] = []
        trace: list[int] = []
        for index in range(self._at, len(events)):
            event = events[index]
            if event >= 0:
                own[index] = len(sizes)
                trace.append(len(sizes))
                sizes.append(event)
            elif ~event in own:
                trace.append(~(2 * own[~event]))
            elif ~event in self._labels:
                trace.append(~(2 * len(frees) + 1))
                frees.append(self._labels[~event])
            else:
                raise NotRehearsable(f"a pass frees what {makers[~event]} made outside of every pass")
        alive = self._alive()
        renames = [
            (self._labels[index], label)
            for index, label in alive.items()
            if index not in own and self._labels[index] != label
        ]
        whole = PassTrace(
            sizes=tuple(sizes),
            events=tuple(trace),
            frees=tuple(frees),
            leaves=tuple(sorted((own[index], label) for index, label in alive.items() if index in own)),
            renames=tuple(sorted(renames)),
        )
        # Each event since is one of the trace's.
        marks = tuple((at - self._at, layer) for at, layer in self._marks if at >= self._at)
        return SeenPass(whole, marks)

    def _alive(self) -> dict[int, Label]:
        """Event -> label of all that is allocated and not freed."""
        events = self._log.events
        freed = {~event for event in events if event < 0}
        alive = [index for index, event in enumerate(events) if event >= 0 and index not in freed]
        labels: dict[int, Label] = {}
        for label, tensor in _cached([cache for _, cache in self._readers]):
            index = self._log.event_of(tensor)
            if index is not None and index not in labels:
                labels[index] = label
        counts: dict[str, int] = {}
        for index in alive:
            if index not in labels:
                maker = self._log.makers[index]
                counts[maker] = counts.get(maker, 0) + 1
                labels[index] = f"{maker} {counts[maker]}"
        return labels


class _Passes:
    """Cuts what a session does into `passes`: at each forward of the target, but for the first `skip + 1`."""

    def __init__(self, log: StorageLog, marks: list[tuple[int, int]], skip: int, passes: int) -> None:
        self.readers: Readers = []
        self.seen: list[SeenPass] = []
        self.is_open = False
        self._log = log
        self._marks = marks
        self._skip = skip + 1
        self._passes = passes
        self._cut: _Cut | None = None

    def begin(self) -> None:
        self._marks.clear()
        self._cut = _Cut(self._log, self.readers, self._marks)

    def end(self) -> None:
        """The last pass has no forward behind it."""
        assert self._cut is not None
        self.seen.append(self._cut.passed())

    def before_forward(self, *_: object) -> None:
        if self._cut is None:
            return  # what fills a cache
        if self._skip:
            self._skip -= 1
            return
        self.seen.append(self._cut.passed())
        if len(self.seen) == self._passes:
            raise _Enough
        self.begin()


def _cached(caches: list[Cache]) -> Iterator[tuple[Label, torch.Tensor]]:
    for number, cache in enumerate(caches):
        for layer, kept in enumerate(getattr(cache, "layers", ())):
            for place, tensor in enumerate(cache_tensors(kept)):
                yield cache_label(number, layer, place), tensor
        for place, tensor in enumerate(cache_tensors(cache)):
            yield f"cache {number} {place}", tensor


@contextmanager
def _without_remarks() -> Iterator[None]:
    """transformers' warnings are for runs, such as that a text is longer than those of the training."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever cannot be rehearsed becomes `NotRehearsable`."""
    try:
        yield
    except (NotRehearsable, _Enough):
        raise
    except ModeUnsupported as error:
        raise ModeRefused(str(error)) from error
    except Exception as error:  # an architecture's own code may need anything
        raise NotRehearsable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _load(names: list[str], ref: ModelRef) -> tuple[tuple[int, ...], list[PreTrainedModel]]:
    """(events of loading, as they come onto the card; the models)."""
    log = StorageLog()
    models = []
    if any(name.startswith(RANDOM) for name in names):
        log.keep(_DRAWN_BYTES)
    for name in names:
        config = read_config(name, ref)
        if getattr(config, "quantization_config", None) is not None and not name.startswith(RANDOM):
            raise NotRehearsable(
                f"{name}: its weights are quantised, and what its kernels unpack is not known"
            )
        dtype = getattr(torch, ref.dtype)
        options: dict[str, Any] = {
            "attn_implementation": ref.attn_implementation,
            "trust_remote_code": ref.trust_remote_code,
        }
        if name.startswith(RANDOM):
            with standing_in(), log, torch.device("meta"):
                model = from_config(config, dtype, **options)
        else:
            with torch.device("meta"), no_init_weights():
                model = from_config(config, dtype, **options)
            with log:
                for tensor in {
                    id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
                }.values():
                    tensor.data = torch.empty_like(tensor.data)
        models.append(model.eval().requires_grad_(False))
    return tuple(log.events), models


def _loaded(name: str, model: PreTrainedModel) -> LoadedModel:
    return LoadedModel(
        model=model,
        name=name,
        eos_ids=eos_ids_of(model),
        max_positions=None,
        vocab_size=vocab_size(model.config),
        weights_bytes=0,
        load_s=0.0,
        load_was_warm=None,
    )
