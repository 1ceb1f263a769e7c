"""Runs that share the replay of their first chunks, against runs that replay all of it."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.rehearsed.prefix import Prefix
from orchestrator.predict.rehearsed.run import RehearsedRun
from workers.rehearsal.passes import PassTrace, Piece

KiB, MiB = 2**10, 2**20
CHUNK = 64
#: Ids of these many sequences take blocks of the small pool, of the large one, and segments of their own.
BATCHES = (1, 64, 2048, 20_000)
FAR = 2**40


@dataclasses.dataclass(frozen=True)
class Growing:
    """Two caches whose every pass makes a longer copy beside the old one, and a temporary tensor."""

    token_bytes: int
    temporary: int

    weights = (3 * MiB, 40 * MiB, ~0, 700 * KiB)

    def chunk(self, position: int, tokens: int) -> PassTrace:
        frees = ("cache 0", "cache 1") if position else ()
        size = (position + tokens) * self.token_bytes
        events = (0, 1, *((~1,) if position else ()), 2, *((~3,) if position else ()), ~0)
        sizes = (self.temporary * tokens, size, size)
        return PassTrace(sizes, events, frees, ((1, "cache 0"), (2, "cache 1")))

    def start(self, prompt_tokens: int) -> PassTrace:
        return self.chunk(prompt_tokens - 1, 1)

    def first(self, prompt_tokens: int) -> PassTrace:
        return self.chunk(prompt_tokens, 1)

    def steps(self, prompt_tokens: int, step: int) -> Piece:
        return Piece(0, FAR, self.chunk(1, 0), self.chunk(FAR, 0))


def plain(
    rehearsal: Growing,
    asked: AllocatorSettings,
    prompt: int,
    room: int | None,
    emulated: bool,
    batch: int = 1,
) -> RehearsedRun:
    limit = {"allowed_bytes" if emulated else "device_bytes": room}
    allocator = CachingAllocator(asked, **limit)
    return RehearsedRun(rehearsal, allocator, (MiB,), prompt_tokens=prompt, chunk=CHUNK, batch_size=batch)


def state(run: RehearsedRun) -> tuple[object, ...]:
    allocator = run.allocator
    return run.failure, run.points, allocator.allocated, allocator.reserved, allocator.retries


@settings(max_examples=60, deadline=None)
@given(
    st.builds(Growing, st.integers(100, 2 * MiB), st.integers(1, 64 * KiB)),
    st.sampled_from(
        [
            AllocatorSettings(),
            AllocatorSettings(expandable_segments=True),
            AllocatorSettings(max_split_bytes=20 * MiB),
            AllocatorSettings(roundup_power2_divisions=(8,) * 16),
        ]
    ),
    st.lists(st.tuples(st.integers(66, 64 * 12), st.integers(1, 900)), min_size=1, max_size=5),
    st.integers(66, 64 * 12),
    st.sampled_from(BATCHES),
    st.booleans(),
)
def test_a_run_from_a_shared_beginning_is_the_run_from_its_own(
    rehearsal: Growing,
    asked: AllocatorSettings,
    questions: list[tuple[int, int]],
    first: int,
    batch: int,
    emulated: bool,
) -> None:
    prefix = Prefix(plain(rehearsal, asked, first, None, emulated, batch), CHUNK, emulated=emulated)
    for prompt, room_mib in questions:
        for limit in (room_mib * MiB, None):
            shared = prefix.of(prompt, limit).to(9)
            assert state(shared) == state(plain(rehearsal, asked, prompt, limit, emulated, batch).to(9))


def test_what_was_read_is_not_read_again() -> None:
    played: list[int] = []

    class Counting(Growing):
        def chunk(self, position: int, tokens: int) -> PassTrace:
            played.append(position)
            return super().chunk(position, tokens)

    run = plain(Counting(4096, 1), AllocatorSettings(), 64, None, False)
    prefix = Prefix(run, CHUNK, emulated=False)
    prefix.of(100 * CHUNK + 1, None)
    whole = len(played)
    prefix.of(99 * CHUNK + 1, None)
    assert whole == 100
    assert len(played) - whole < 20
