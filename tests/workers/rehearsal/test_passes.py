"""Passes at any length from a few rehearsed ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.rehearsal.passes import NotRehearsable, PassFamily, PassTrace

MiB = 2**20


def trace(*sizes: int) -> PassTrace:
    events = tuple(range(len(sizes)))
    return PassTrace(sizes=sizes, events=events, frees=(), leaves=tuple((i, f"cache {i}") for i in events))


@given(
    slope=st.integers(0, 9000),
    window=st.integers(1, 300_000),
    fixed=st.integers(0, 64 * MiB),
    asked=st.lists(st.integers(512, 200_000), min_size=1, max_size=5),
)
def test_windows_are_found_and_nothing_is_off_by_more_than_is_told(
    slope: int, window: int, fixed: int, asked: list[int]
) -> None:
    rehearsed = []

    def rehearse(position: int) -> PassTrace:
        rehearsed.append(position)
        return trace(fixed + slope * position, 4096 * min(position, window))

    family = PassFamily(rehearse, 512, 512)
    for position in asked:
        exact = fixed + slope * position, 4096 * min(position, window)
        for size, real in zip(family.at(position).sizes, exact, strict=True):
            assert abs(size - real) <= max(64 * 2**10, 0.002 * real) + 4096 * 512 * (
                abs(position - window) < 512
            )
    assert len(rehearsed) < 40


def test_another_structure_from_some_length_on_is_a_piece_of_its_own() -> None:
    def rehearse(position: int) -> PassTrace:
        return trace(position * 100, 8) if position >= 70_000 else trace(position * 100)

    family = PassFamily(rehearse, 1000, 1000)
    lengths = [len(family.at(position).sizes) for position in (69_000, 69_999, 70_000, 250_000)]
    assert lengths == [1, 1, 2, 2]
    assert family.at(123_456).sizes == (12_345_600, 8)


def test_sizes_without_a_law_are_refused() -> None:
    family = PassFamily(lambda position: trace(position**3 % 10007 * MiB), 1, 1)
    with pytest.raises(NotRehearsable, match="no law"):
        _ = [family.at(position) for position in range(500_000, 600_000, 1000)]


def test_only_the_lengths_that_are_asked_for_are_looked_into() -> None:
    """A law with a step every 1,000: what lies in other steps is not rehearsed."""
    rehearsed: list[int] = []

    def rehearse(position: int) -> PassTrace:
        rehearsed.append(position)
        return trace(position // 1000 * MiB)

    assert PassFamily(rehearse, 1, 1).at(700_500).sizes[0] == pytest.approx(700 * MiB, rel=0.002)
    assert len(rehearsed) < 45
