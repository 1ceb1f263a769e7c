"""A block whose size may have been another, against an allocator that was asked for that size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.predict.allocator.blocks import Block
from orchestrator.predict.allocator.caching import CachingAllocator, OutOfDeviceMemory
from orchestrator.predict.allocator.settings import AllocatorSettings, MiB

KiB = 2**10
#: Of requests, few and close to each other, so that the rest of the block's segment is often the best place or nearly so.
SIZES = st.one_of(
    st.integers(1, 16).map(lambda count: count * 96 * KiB), st.integers(1, 12).map(lambda count: count * MiB)
)
#: n > 0 allocates n bytes, n <= 0 frees one of the blocks that are alive.
STEPS = st.lists(st.one_of(SIZES, st.integers(-6, 0)), max_size=40)


def go_on(allocator: CachingAllocator, held: list[Block], steps: list[int]) -> list[tuple[int, ...]]:
    told = []
    for step in steps:
        try:
            if step > 0:
                held.append(allocator.allocate(step))
            elif held:
                allocator.free(held.pop(step % len(held)))
        except OutOfDeviceMemory as full:
            told.append((full.wanted, full.reserved))
        told.append((allocator.allocated, allocator.reserved, allocator.peak_allocated, allocator.demand))
    return told


@settings(max_examples=300, deadline=None)
@given(STEPS, SIZES, SIZES, STEPS, STEPS, st.one_of(st.none(), st.integers(20, 120)))
def test_what_may_have_been_of_another_size_goes_on_as_if_it_were(
    before: list[int], size: int, other: int, between: list[int], after: list[int], room: int | None
) -> None:
    allowed = None if room is None else room * MiB
    varied, plain = CachingAllocator(allowed_bytes=allowed), CachingAllocator(allowed_bytes=allowed)
    mine: list[Block] = []
    others: list[Block] = []
    for allocator, held in ((varied, mine), (plain, others)):
        go_on(allocator, held, before)
        allocator.reset_peaks()
    try:
        block, real = varied.allocate_varying(size), plain.allocate(other)
    except OutOfDeviceMemory:
        return
    go_on(varied, mine, between)
    go_on(plain, others, between)
    if not varied.may_resize(other):
        return
    varied.resize(other)
    assert varied.allocated == plain.allocated
    assert varied.peak_allocated == plain.peak_allocated
    varied.free(block)
    plain.free(real)
    assert go_on(varied, mine, after) == go_on(plain, others, after)


def test_a_size_changes_until_something_else_would_have_been_chosen() -> None:
    allocator = CachingAllocator()
    allocator.allocate_varying(4 * MiB)  # of a segment of 20 MiB
    assert [allocator.may_resize(size * MiB) for size in (1, 2, 9, 10)] == [False, True, True, False]
    allocator.allocate(11 * MiB)  # from the rest of 16 MiB, and 1 MiB must be left to split it
    assert [allocator.may_resize(size * MiB) for size in (2, 7, 8)] == [True, True, False]
    allocator.resize(6 * MiB)
    assert allocator.allocated == 17 * MiB


@pytest.mark.parametrize(
    "asked", [AllocatorSettings(expandable_segments=True), AllocatorSettings(max_split_bytes=40 * MiB)]
)
def test_other_settings_change_no_size(asked: AllocatorSettings) -> None:
    allocator = CachingAllocator(asked)
    allocator.allocate_varying(4 * MiB)
    assert allocator.may_resize(4 * MiB)
    assert not allocator.may_resize(4 * MiB + 512)
