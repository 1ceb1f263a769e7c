"""The units in which attention sums a full cache, and how programs share them."""

from itertools import groupby

from workers.engines.graph.kernels.attend_blocks import programs_of, units_of


def test_units_grow_with_the_context_and_never_move() -> None:
    """32 units of one block, then 16 each of two, four, eight: a unit that is there stays as it is."""
    unit_of_block = [units_of(blocks) - 1 for blocks in range(1, 257)]
    lengths = [len(list(blocks)) for _, blocks in groupby(unit_of_block)]
    assert lengths == [1] * 32 + [2] * 16 + [4] * 16 + [8] * 16
    assert unit_of_block == sorted(unit_of_block)
    assert units_of(131_072 // 64) == 128


def test_programs_fill_the_card_once_or_several_times() -> None:
    for heads in (1, 8, 32, 264, 265, 512, 4096):
        programs = heads * programs_of(heads, 264)
        assert programs <= 264 < programs + heads or programs >= 4 * 264
