"""A whole run through the allocator model: weights, the prompt's passes, the generation's, until it is done or full."""

import contextlib
import copy
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from orchestrator.predict.allocator.blocks import Block
from orchestrator.predict.allocator.caching import CachingAllocator, OutOfDeviceMemory
from orchestrator.predict.device import FIRST_PASS_KERNELS
from workers.rehearsal.passes import Label, NotRehearsable, PassTrace, Piece

_SMALL, _SHARED, _UNIT = 2**20, 10 * 2**20, 512
#: Of a generation every step is replayed as long as caches are pieces of shared segments: there each moves the next. Of tiny
#: models one for so many bytes of each cache: those between have rounded sizes of their neighbours.
_FINE = _UNIT // 2
#: Later each that makes the text longer by this share; at once, where so many steps were replayed.
_STRIDE, _MOST_FINE = 1 / 1024, 30_000
#: A run that allocates more often in its steps is not replayed to its end. Twice what the deepest models take that an 80 GB
#: card holds.
_MOST_ALLOCATIONS = 10_000_000
#: Every so many-th is replayed whole; of the others what is small and does not outlive its pass comes and goes alike.
_WHOLE = 64


def ids_bytes(batch_size: int, prompt_tokens: int) -> int:
    """Of the prompt's ids on the card while it is read in chunks."""
    return 8 * batch_size * (prompt_tokens - 1)


class Rehearsal(Protocol):
    """An engine's passes by length (`workers.rehearsal`). Each may raise `NotRehearsable`."""

    @property
    def weights(self) -> tuple[int, ...]:
        """Loading, as events of `orchestrator.predict.allocator.replay.Trace`."""

    def chunk(self, position: int, tokens: int) -> PassTrace: ...

    def start(self, prompt_tokens: int) -> PassTrace: ...

    def first(self, prompt_tokens: int) -> PassTrace: ...

    def steps(self, prompt_tokens: int, step: int) -> Piece: ...


class Point(NamedTuple):
    """The run once `tokens` of the prompt were read (prefill) or of the text known (decode). Bytes; peaks since the weights
    were loaded, as an attempt's are; those of loading itself at the point `load`.
    """

    phase: str
    tokens: int
    peak_reserved: int
    peak_allocated: int
    kv_bytes: int


class RanOut(NamedTuple):
    """Where memory ran out: load, prefill or decode, and the last `tokens` before."""

    phase: str
    tokens: int


class RehearsedRun:
    """One run of a prompt of `prompt_tokens`, `chunk` of them a pass (None: all at once), and as many new tokens as asked
    for. `library_bytes`: workspaces that libraries take before the first weight.

    Runs as far as it must, and goes on from there. `failure`: None as long as everything fitted.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        allocator: CachingAllocator,
        library_bytes: tuple[int, ...],
        *,
        prompt_tokens: int,
        chunk: int | None,
        batch_size: int,
    ) -> None:
        self.weights_bytes = 0
        self.failure: RanOut | None = None
        self.points: list[Point] = []
        self.allocator = allocator
        self._rehearsal, self._library_bytes = rehearsal, library_bytes
        self.prompt_tokens = prompt_tokens
        self._chunk, self._batch = chunk, batch_size
        self._held: dict[Label, Block] = {}
        self._ids: Block | None = None
        self._phase, self._tokens = "load", 0
        self._played = self._allocations = 0
        self._steps: _Steps | None = None

    @property
    def read_tokens(self) -> int:
        """Of the prompt, while it is read."""
        return self._tokens

    def copy(self, prompt_tokens: int, ids_of: int) -> "RehearsedRun":
        """This run so far, for another prompt that is longer than what was read. It goes on by itself. `ids_of`: a prompt that
        `suits`, whose ids take as much as its own shall.
        """
        other = copy.copy(self)
        held = [*self._held.values(), *([] if self._ids is None else [self._ids])]
        other.allocator, copies = self.allocator.copy(held)
        other._held = {label: copies[block] for label, block in self._held.items()}
        other._ids = None if self._ids is None else copies[self._ids]
        other.points = list(self.points)
        other.prompt_tokens = prompt_tokens
        if other._ids is not None:
            more = other.allocator.resize(ids_bytes(self._batch, ids_of))
            other.points = [
                point if point.phase == "load" else point._replace(peak_allocated=point.peak_allocated + more)
                for point in self.points
            ]
        return other

    def suits(self, ids_of: int) -> bool:
        """Whether it is, so far, what it would be with the ids of that prompt."""
        return self._ids is None or self.allocator.may_resize(ids_bytes(self._batch, ids_of))

    def read(self, tokens: int) -> "RehearsedRun":
        """Go on until `tokens` of the prompt were read, whole chunks, or memory ends. Raises `NotRehearsable`."""
        if self.failure is None:
            with self._ending():
                self._read(tokens)
        return self

    def to(self, new_tokens: int) -> "RehearsedRun":
        """Go on until `new_tokens` are known, or memory ends. Raises `NotRehearsable`."""
        if self.failure is not None or (self._phase == "decode" and self._tokens >= new_tokens):
            return self
        with self._ending():
            if self._phase != "decode":
                self._read(self.prompt_tokens - 1)
                self._start()
            while self._tokens < new_tokens:
                self._step(new_tokens)
        return self

    def fits(self, new_tokens: int) -> bool:
        """Whether a run of that length ends. Ask after `to`."""
        failure = self.failure
        return failure is None or (failure.phase == "decode" and new_tokens <= failure.tokens)

    def at(self, new_tokens: int) -> Point:
        """The run of that length, or how far it came."""
        index = bisect_left(
            self.points, new_tokens, key=lambda point: point.tokens * (point.phase == "decode")
        )
        return self.points[min(index, len(self.points) - 1)]

    def _load(self) -> None:
        for size in self._library_bytes:
            self.allocator.allocate(size)
        blocks: dict[int, Block] = {}
        for index, event in enumerate(self._rehearsal.weights):
            if event > 0:
                blocks[index] = self.allocator.allocate(event)
            elif event < 0:
                self.allocator.free(blocks.pop(~event))
        self.weights_bytes = sum(block.size for block in blocks.values())
        self._note("load", 0)
        self.allocator.reset_peaks()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except OutOfDeviceMemory:
            self.failure = RanOut(self._phase, self._tokens)

    def _read(self, tokens: int) -> None:
        """Passes over the prompt, up to `tokens` of it."""
        if self._phase == "load":
            self._load()
            self._phase = "prefill"
            self.allocator.load_kernels(FIRST_PASS_KERNELS)
            if self._chunk is not None and self.prompt_tokens > 1:
                self._ids = self.allocator.allocate_varying(ids_bytes(self._batch, self.prompt_tokens))
        while self._chunk is not None and self._tokens < tokens:
            count = min(self._chunk, tokens - self._tokens)
            self._play(self._rehearsal.chunk(self._tokens, count))
            self._note("prefill", self._tokens + count)

    def _start(self) -> None:
        """The pass that gives the first new token."""
        if self._ids is not None:
            self.allocator.free(self._ids)
            self._ids = None
        self._play(self._rehearsal.start(self.prompt_tokens))
        self._note("decode", 1)

    def _step(self, last: int) -> None:
        """The i-th pass behind the first one gives new token i + 1."""
        if self._tokens == 1:
            self._play(self._rehearsal.first(self.prompt_tokens))
            self._note("decode", 2)
            return
        step = min(self._tokens - 1 + self._stride(), last - 1)
        position = self.prompt_tokens + step - 2
        if self._steps is None or position >= self._steps.piece.end:
            piece = self._rehearsal.steps(self.prompt_tokens, step)
            self._steps = _Steps(piece, self.allocator.settings.expandable_segments)
        if self._played % _WHOLE == 0:
            piece = self._steps.piece
            self._play(replace(piece.first, sizes=tuple(piece.sizes(position))))
        else:
            self._steps.play(position, self.allocator, self._held)
        self._played += 1
        self._allocations += self._steps.allocations
        if self._allocations > _MOST_ALLOCATIONS:
            raise NotRehearsable(f"a run allocates more than {_MOST_ALLOCATIONS:,} times")
        self._note("decode", step + 1)

    def _stride(self) -> int:
        """Steps to the next one that is worth a replay."""
        tokens = self.prompt_tokens + self._tokens
        if self._steps is None:
            return 1
        if not self._steps.grows:
            return max(1, tokens // 4)
        if self._played < _MOST_FINE and self._steps.is_fine(tokens - 3):
            return self._steps.fine_stride
        return max(1, int(tokens * _STRIDE))

    def _play(self, trace: PassTrace) -> None:
        """One pass, whole."""
        events = trace.events
        kept = [own for own, _ in trace.leaves]
        _play(trace, events, list(trace.sizes), kept, self.allocator, self._held)

    def _note(self, phase: str, tokens: int) -> None:
        self._phase, self._tokens = phase, tokens
        allocator = self.allocator
        kv_bytes = sum(block.size for label, block in self._held.items() if label.startswith("cache"))
        self.points.append(Point(phase, tokens, allocator.peak_reserved, allocator.peak_allocated, kv_bytes))


class _Steps:
    """The steps of one piece, without what is small and does not outlive its pass."""

    def __init__(self, piece: Piece, is_expandable: bool) -> None:
        self.piece = piece
        first = piece.first
        last = piece.last if first.is_like(piece.last) else first
        kept = {own for own, _ in first.leaves}
        played = [
            own
            for own, sizes in enumerate(zip(first.sizes, last.sizes, strict=True))
            if own in kept or max(sizes) > _SMALL
        ]
        place = {own: place for place, own in enumerate(played)}
        self._length = piece.end - piece.begin
        self._sizes = [(first.sizes[own], last.sizes[own] - first.sizes[own]) for own in played]
        self._events = tuple(
            place[event] if event >= 0 else event if ~event & 1 else ~(2 * place[~event >> 1])
            for event in first.events
            if (event in place if event >= 0 else ~event & 1 or ~event >> 1 in place)
        )
        self._kept = [place[own] for own, _ in first.leaves]
        self._cached = [self._sizes[place[own]] for own, label in first.leaves if label.startswith("cache")]
        self.allocations = len(played)
        self._is_expandable = is_expandable
        fastest = max((growth for _, growth in self._cached), default=0)
        self.grows = any(growth for _, growth in self._cached)
        self.fine_stride = max(1, _FINE * self._length // fastest) if fastest > 0 else 1

    def is_fine(self, position: int) -> bool:
        """Whether the caches share segments, and not by whole units of the allocator, so that steps rearrange them."""
        if self._is_expandable:
            return any(growth % (_UNIT * self._length) for _, growth in self._cached)
        at = position - self.piece.begin
        return all(size + growth * at // self._length < _SHARED for size, growth in self._cached)

    def play(self, position: int, allocator: CachingAllocator, held: dict[Label, Block]) -> None:
        at, length = position - self.piece.begin, self._length
        sizes = [size + growth * at // length for size, growth in self._sizes]
        _play(self.piece.first, self._events, sizes, self._kept, allocator, held)


def _play(
    trace: PassTrace,
    events: tuple[int, ...],
    sizes: list[int],
    kept: list[int],
    allocator: CachingAllocator,
    held: dict[Label, Block],
) -> None:
    """`events` of `trace`, allocations of `sizes`. `kept`: those that outlive it, in the order of `trace.leaves`."""
    allocate, free = allocator.allocate, allocator.free
    earlier = [held.pop(label, None) for label in trace.frees]
    blocks: list[Block | None] = [None] * len(sizes)
    for event in events:
        if event >= 0:
            blocks[event] = allocate(sizes[event])
        else:
            block = earlier[~event >> 1] if ~event & 1 else blocks[~event >> 1]
            if block is not None:
                free(block)
    renamed = [(new, held.pop(label)) for label, new in trace.renames]
    held.update(renamed)
    for own, (_, label) in zip(kept, trace.leaves, strict=True):
        block = blocks[own]
        assert block is not None
        held[label] = block
