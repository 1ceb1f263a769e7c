"""The allocator model: its rules one by one, its invariants, and a slow twin that must agree at every event."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.predict.allocator.address_space import AddressSpace, ContextRoom
from orchestrator.predict.allocator.caching import CachingAllocator, OutOfDeviceMemory
from orchestrator.predict.allocator.replay import TraceError, replay
from orchestrator.predict.allocator.settings import AllocatorSettings, AllocatorSettingsError, MiB
from tests.orchestrator.predict.reference_allocator import FREE, UNMAPPED, ReferenceAllocator

EXPANDABLE = AllocatorSettings(expandable_segments=True)
NO_ROOM = ContextRoom(0, 0, 0)
SETTINGS = (
    AllocatorSettings(),
    EXPANDABLE,
    AllocatorSettings(roundup_power2_divisions=(8,) * 16),
    AllocatorSettings(max_split_bytes=20 * MiB),
    AllocatorSettings(max_split_bytes=40 * MiB, max_non_split_rounding_bytes=24 * MiB),
    AllocatorSettings(garbage_collection_threshold=0.4),
    AllocatorSettings(garbage_collection_threshold=0.2, max_split_bytes=30 * MiB),
    AllocatorSettings(expandable_segments=True, roundup_power2_divisions=(4, 2) + (1,) * 14),
    AllocatorSettings(large_segment_bytes=40 * MiB),
)
SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 2 * MiB),
    st.integers(1, 24 * MiB),
    st.integers(1, 90 * MiB),
    st.sampled_from([512, MiB, MiB + 1, 10 * MiB - 512, 10 * MiB, 20 * MiB, 20 * MiB + 512]),
)


@st.composite
def traces(draw: st.DrawFn) -> list[int]:
    trace: list[int] = []
    live: list[int] = []
    for _ in range(draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            trace.append(~live.pop(draw(st.integers(0, len(live) - 1))))
        else:
            live.append(len(trace))
            trace.append(draw(SIZES))
    return trace


@pytest.mark.parametrize(
    ("size", "reserved"),
    [(1, 2), (MiB, 2), (MiB + 1, 20), (10 * MiB - 512, 20), (10 * MiB - 511, 10), (10 * MiB + 1, 12)],
)
def test_the_first_request_takes_a_segment_of_its_class(size: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert allocator.reserved == reserved * MiB


def test_a_large_block_keeps_up_to_one_mebibyte_that_nobody_asked_for() -> None:
    allocator = CachingAllocator()
    whole = allocator.allocate(40 * MiB)
    allocator.free(whole)
    assert allocator.allocate(39 * MiB).size == 40 * MiB
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(40 * MiB))
    assert allocator.allocate(39 * MiB - 512).size == 39 * MiB - 512


def test_the_smallest_block_that_fits_is_taken_and_neighbours_merge() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MiB) for size in (64, 32, 48)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(30 * MiB).address == blocks[1].address
    pieces = [allocator.allocate(6 * MiB) for _ in range(3)]  # three of the 48 MiB, then its rest
    assert {piece.address - blocks[2].address for piece in pieces} == {0, 6 * MiB, 12 * MiB}
    for piece in pieces:
        allocator.free(piece)
    assert allocator.allocate(48 * MiB).address == blocks[2].address
    assert allocator.reserved == 144 * MiB


def test_what_is_cached_is_given_back_before_a_request_fails() -> None:
    allocator = CachingAllocator(allowed_bytes=100 * MiB)
    allocator.free(allocator.allocate(60 * MiB))
    kept = allocator.allocate(30 * MiB)  # splits the 60
    with pytest.raises(OutOfDeviceMemory) as full:
        allocator.allocate(80 * MiB)
    assert (full.value.wanted, full.value.reserved, full.value.allocated) == (80 * MiB, 60 * MiB, 30 * MiB)
    allocator.free(kept)
    allocator.allocate(80 * MiB)
    assert allocator.reserved == 80 * MiB


def test_expandable_segments_tile_what_segments_of_their_own_would_waste() -> None:
    wasteful, tight = CachingAllocator(), CachingAllocator(EXPANDABLE)
    for allocator in (wasteful, tight):
        for _ in range(8):
            allocator.allocate(11 * MiB)
    assert (wasteful.reserved, tight.reserved) == (8 * 12 * MiB, 100 * MiB)


def test_the_end_of_an_expandable_segment_is_kept_for_requests_that_fit_nowhere_else() -> None:
    allocator = CachingAllocator(EXPANDABLE)
    first = allocator.allocate(30 * MiB)
    allocator.allocate(5 * MiB)  # 5 MiB of the second page are left at the end
    allocator.free(first)
    assert allocator.allocate(4 * MiB).address == first.address


def test_free_pages_of_an_expandable_segment_return_to_the_device() -> None:
    allocator = CachingAllocator(EXPANDABLE, device_bytes=200 * MiB)
    first, middle, last = (allocator.allocate(50 * MiB) for _ in range(3))
    allocator.free(middle)
    allocator.empty_cache()
    assert allocator.reserved == (60 + 60) * MiB  # pages 60 to 100 lie wholly within the freed block
    assert allocator.allocate(45 * MiB).address == middle.address
    allocator.free(first)
    allocator.free(last)


@settings(max_examples=300, deadline=None)
@given(
    trace=traces(),
    chosen=st.sampled_from(SETTINGS),
    allowed=st.one_of(st.none(), st.integers(20, 400)),
    device=st.one_of(st.none(), st.integers(20, 400)),
)
def test_the_model_agrees_with_its_slow_twin_at_every_event(
    trace: list[int], chosen: AllocatorSettings, allowed: int | None, device: int | None
) -> None:
    limits = [None if limit is None else limit * MiB for limit in (allowed, device)]
    twin = ReferenceAllocator(chosen, *limits)
    replayed = replay(trace, CachingAllocator(chosen, *limits))
    held = {}
    for index, event in enumerate(trace):
        if event < 0:
            twin.free(held.pop(~event))
        else:
            held[index] = twin.allocate(event)
            if held[index] is None:
                assert replayed.failure is not None
                assert replayed.failure.event == index
                assert (replayed.failure.allocated, replayed.failure.reserved) == (
                    twin.allocated,
                    twin.reserved,
                )
                return
        assert (replayed.allocated[index], replayed.reserved[index]) == (twin.allocated, twin.reserved)
    assert replayed.failure is None
    for segment in twin.segments:  # the twin's own invariant: neighbours that could merge have merged
        states = [piece.state for piece in segment.pieces]
        assert all(a != b or a not in (FREE, UNMAPPED) for a, b in itertools.pairwise(states))


@settings(max_examples=100, deadline=None)
@given(trace=traces(), chosen=st.sampled_from(SETTINGS))
def test_all_that_was_freed_can_be_given_back(trace: list[int], chosen: AllocatorSettings) -> None:
    allocator = CachingAllocator(chosen)
    freed = {~event for event in trace if event < 0}
    alive = [index for index, event in enumerate(trace) if event > 0 and index not in freed]
    replayed = replay([*trace, *(~index for index in alive)], allocator)
    assert all(
        allocated <= reserved
        for allocated, reserved in zip(replayed.allocated, replayed.reserved, strict=True)
    )
    assert replayed.peak_reserved >= max(replayed.reserved)
    assert allocator.allocated == 0
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_segments_fill_mappings_of_32_mebibytes_that_grow_downwards() -> None:
    space = AddressSpace(NO_ROOM)
    first, second, third = (space.take(14 * MiB) for _ in range(3))
    assert (second - first, third - first) == (14 * MiB, -32 * MiB)
    assert (
        space.take(2 * MiB) - third == 14 * MiB
    )  # in the newest mapping, not in the 4 MiB behind the second
    space.give(second, 14 * MiB)
    space.give(first, 14 * MiB)
    assert space.take(40 * MiB) == third - 64 * MiB
    assert space.take(20 * MiB) == third - 64 * MiB + 40 * MiB
    assert space.take(24 * MiB) == third - 96 * MiB  # the gap of 32 MiB leaves nothing to trim


def test_the_newest_mapping_with_room_comes_first_wherever_it_lies_and_the_contexts_last() -> None:
    space = AddressSpace(ContextRoom(64 * MiB, 2 * MiB, 30 * MiB))
    in_context = space.take(40 * MiB)
    high, low = space.take(96 * MiB), space.take(40 * MiB)
    assert low + 64 * MiB == high
    assert high + 96 * MiB == in_context
    space.give(high, 96 * MiB)
    newest = space.take(40 * MiB)
    assert newest == high + 32 * MiB
    assert [space.take(22 * MiB) for _ in range(4)] == [
        newest + 40 * MiB,
        low + 40 * MiB,
        in_context + 40 * MiB,
        in_context + 66 * MiB,
    ]


def test_a_mapping_returns_to_the_highest_gap_that_is_larger() -> None:
    space = AddressSpace(NO_ROOM)
    segments = [space.take(size * MiB) for size in (64, 32, 96, 32)]
    for index in (0, 2):
        space.give(segments[index], (64, 32, 96, 32)[index] * MiB)
    assert space.take(64 * MiB) == segments[2] + 32 * MiB  # the first gap is just as large
    assert space.take(32 * MiB) == segments[0] + 32 * MiB


@given(st.lists(st.one_of(st.integers(1, 60), st.integers(-20, -1)), max_size=80))
def test_segments_never_overlap(steps: list[int]) -> None:
    space, live = AddressSpace(), dict[int, int]()
    for step in steps:
        if step > 0:
            size = step * 2 * MiB
            address = space.take(size)
            assert all(address + size <= other or other + taken <= address for other, taken in live.items())
            live[address] = size
        elif live:
            address = sorted(live)[step % len(live)]
            space.give(address, live.pop(address))


def test_a_trace_frees_only_what_it_allocated() -> None:
    with pytest.raises(TraceError, match="event 2 frees event 0"):
        replay([512, ~0, ~0], CachingAllocator())


def test_settings_are_read_as_torch_reads_them() -> None:
    assert AllocatorSettings.parse(None) == AllocatorSettings()
    assert (
        AllocatorSettings.parse("expandable_segments:True,pinned_use_background_threads:True") == EXPANDABLE
    )
    read = AllocatorSettings.parse(
        "max_split_size_mb:128, garbage_collection_threshold:0.8,"
        "roundup_power2_divisions:[128:8,256:16,512:1,2048:8,>:2]"
    )
    assert read.max_split_bytes == 128 * MiB
    assert read.garbage_collection_threshold == 0.8
    assert read.roundup_power2_divisions == (8, 8, 8, 8, 8, 8, 8, 8, 16, 1, 0, 8, 2, 2, 2, 2)
    assert AllocatorSettings.parse("roundup_power2_divisions:4").roundup_power2_divisions == (4,) * 16


def test_power_of_two_steps_round_a_request() -> None:
    allocator = CachingAllocator(AllocatorSettings(roundup_power2_divisions=(4,) * 16))
    assert [allocator.rounded(size) for size in (1, 2000, 2049, 1200 * 2**10, 2**21)] == [
        512,
        2048,
        2560,
        1280 * 2**10,
        2**21,
    ]


@pytest.mark.parametrize("text", ["expandable_segments:yes", "backend:cudaMallocAsync", "nonsense", "a:b"])
def test_what_the_model_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(AllocatorSettingsError):
        AllocatorSettings.parse(text)
