"""A whole run through the allocator model: weights, the prompt's passes, the generation's, until it is done or full."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.predict.allocator.blocks import Block
from orchestrator.predict.allocator.caching import CachingAllocator, OutOfDeviceMemory
from workers.rehearsal.passes import Label, PassTrace, Piece

_SMALL, _SHARED, _UNIT = 2**20, 10 * 2**20, 512
#: Of a generation every step is replayed as long as caches are pieces of shared segments: there each moves the next. Later
#: each that makes the text longer by this share; at once, where so many steps were replayed.
_STRIDE, _MOST_FINE = 1 / 2048, 100_000
#: Every so many-th is replayed whole; of the others what is small and does not outlive its pass comes and goes alike.
_WHOLE = 64


class Rehearsal(Protocol):
    """An engine's passes by length (`workers.rehearsal`)."""

    @property
    def weights(self) -> tuple[int, ...]:
        """Loading, as events of `orchestrator.predict.allocator.replay.Trace`."""

    def chunk(self, position: int, tokens: int) -> PassTrace: ...

    def start(self, prompt_tokens: int) -> PassTrace: ...

    def first(self, prompt_tokens: int) -> PassTrace: ...

    def steps(self, prompt_tokens: int, step: int) -> Piece: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is run: `chunk` prompt tokens a pass, None: all at once. `new_tokens` None: until memory ends."""

    prompt_tokens: int
    new_tokens: int | None
    chunk: int | None
    batch_size: int


@dataclass(slots=True, kw_only=True)
class RunOutcome:
    """How a run went. `failed_in`: load, prefill, decode; None: nowhere. `reached`: prompt tokens read (prefill) or new
    tokens known (decode) when it failed. Bytes at the moment when most was reserved.
    """

    failed_in: str | None = None
    reached: int = 0
    peak_phase: str = "load"
    peak_reserved: int = 0
    peak_allocated: int = 0
    allocated_at_peak: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    account: OutOfDeviceMemory | None = None


@dataclass(slots=True)
class RunReplay:
    """One run. `library_bytes`: workspaces that libraries take before the first weight."""

    rehearsal: Rehearsal
    allocator: CachingAllocator
    library_bytes: tuple[int, ...]
    _held: dict[Label, Block] = field(default_factory=dict)
    _outcome: RunOutcome = field(default_factory=RunOutcome)

    def run(self, course: Course) -> RunOutcome:
        """Raises `NotRehearsable`."""
        outcome = self._outcome
        try:
            self._load()
            outcome.failed_in = "prefill"
            self._read(course)
            outcome.failed_in, outcome.reached = "decode", 1
            self._generate(course)
            outcome.failed_in = None
        except OutOfDeviceMemory as full:
            outcome.account = full
        outcome.peak_reserved = self.allocator.peak_reserved
        outcome.peak_allocated = self.allocator.peak_allocated
        return outcome

    def _load(self) -> None:
        self._outcome.failed_in = "load"
        for size in self.library_bytes:
            self.allocator.allocate(size)
        blocks: dict[int, Block] = {}
        for index, event in enumerate(self.rehearsal.weights):
            if event > 0:
                blocks[index] = self.allocator.allocate(event)
            elif event < 0:
                self.allocator.free(blocks.pop(~event))
        self._outcome.weights_bytes = sum(block.size for block in blocks.values())
        self._note("load")

    def _read(self, course: Course) -> None:
        """The prompt, up to and with the pass that gives the first new token."""
        tokens = course.prompt_tokens - 1
        if course.chunk is not None and tokens > 0:
            ids = self.allocator.allocate(8 * course.batch_size * tokens)
            for position in range(0, tokens, course.chunk):
                self._play(self.rehearsal.chunk(position, min(course.chunk, tokens - position)))
                self._outcome.reached = min(position + course.chunk, tokens)
                self._note("prefill")
            self.allocator.free(ids)
        self._play(self.rehearsal.start(course.prompt_tokens))
        self._note("prefill")

    def _generate(self, course: Course) -> None:
        """New token i + 1 comes of the i-th pass behind the first."""
        outcome, prompt = self._outcome, course.prompt_tokens
        last = None if course.new_tokens is None else course.new_tokens - 1
        if last == 0:
            return
        self._play(self.rehearsal.first(prompt))
        outcome.reached = 2
        done, played, piece, program = 1, 0, None, None
        while last is None or done < last:
            is_fine = program is None or (played < _MOST_FINE and program.is_fine(prompt + done - 2))
            stride = 1 if is_fine else max(1, int((prompt + done) * _STRIDE))
            done = done + stride if last is None else min(done + stride, last)
            position = prompt + done - 2
            if piece is None or program is None or position >= piece.end:
                piece = self.rehearsal.steps(prompt, done)
                program = _Program(piece, self.allocator.settings.expandable_segments)
            if played % _WHOLE == 0:
                self._play(replace(piece.first, sizes=tuple(piece.sizes(position))))
            else:
                program.play(position, self.allocator, self._held)
            played += 1
            outcome.reached = done + 1
            self._note("decode")

    def _play(self, trace: PassTrace) -> None:
        """One pass, whole."""
        allocate, free, sizes = self.allocator.allocate, self.allocator.free, trace.sizes
        earlier = [self._held.pop(label, None) for label in trace.frees]
        blocks: dict[int, Block] = {}
        for event in trace.events:
            if event >= 0:
                blocks[event] = allocate(sizes[event])
            else:
                block = earlier[~event >> 1] if ~event & 1 else blocks[~event >> 1]
                if block is not None:
                    free(block)
        renamed = [(new, self._held.pop(label)) for label, new in trace.renames]
        self._held.update(renamed)
        for own, label in trace.leaves:
            self._held[label] = blocks[own]

    def _note(self, phase: str) -> None:
        outcome, allocator = self._outcome, self.allocator
        if allocator.peak_reserved > outcome.peak_reserved:
            outcome.peak_reserved = allocator.peak_reserved
            outcome.peak_phase = phase
        outcome.kv_bytes = self._kv_bytes()

    def _kv_bytes(self) -> int:
        return sum(block.size for label, block in self._held.items() if label.startswith("cache"))


class _Program:
    """The steps of one piece, without what is small and does not outlive its pass."""

    def __init__(self, piece: Piece, is_expandable: bool) -> None:
        first, last = piece.first, piece.last
        if not first.is_like(last):
            last = first
        kept = {own for own, _ in first.leaves}
        played = [
            own
            for own, sizes in enumerate(zip(first.sizes, last.sizes, strict=True))
            if own in kept or max(sizes) > _SMALL
        ]
        self._place = {own: place for place, own in enumerate(played)}
        self._begin, self._length = piece.begin, piece.end - piece.begin
        self._sizes = [(first.sizes[own], last.sizes[own] - first.sizes[own]) for own in played]
        self._events = [
            self._place[event] if event >= 0 else ~(2 * self._place[~event >> 1]) if not ~event & 1 else event
            for event in first.events
            if (event >= 0 and event in self._place)
            or (event < 0 and (~event & 1 or ~event >> 1 in self._place))
        ]
        self._trace = first
        self._cached = [
            self._sizes[self._place[own]] for own, label in first.leaves if label.startswith("cache")
        ]
        self._is_expandable = is_expandable

    def is_fine(self, position: int) -> bool:
        """Whether the caches share segments, and not by whole units of the allocator, so that steps rearrange them."""
        if self._is_expandable:
            return any(growth % (_UNIT * self._length) for _, growth in self._cached)
        at = position - self._begin
        return all(size + growth * at // self._length < _SHARED for size, growth in self._cached)

    def play(self, position: int, allocator: CachingAllocator, held: dict[Label, Block]) -> None:
        allocate, free, at, length = allocator.allocate, allocator.free, position - self._begin, self._length
        sizes = [size + growth * at // length for size, growth in self._sizes]
        earlier = [held.pop(label, None) for label in self._trace.frees]
        blocks: list[Block | None] = [None] * len(sizes)
        for event in self._events:
            if event >= 0:
                blocks[event] = allocate(sizes[event])
            else:
                block = earlier[~event >> 1] if ~event & 1 else blocks[~event >> 1]
                if block is not None:
                    free(block)
        renamed = [(new, held.pop(label)) for label, new in self._trace.renames]
        held.update(renamed)
        for own, label in self._trace.leaves:
            block = blocks[self._place[own]]
            assert block is not None
            held[label] = block
