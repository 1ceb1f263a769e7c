"""The two numbers of a cache's law, from what was counted along runs."""

import dataclasses

import pytest

from orchestrator.explain.measured_law import measured_law
from orchestrator.plan import expand
from tests.orchestrator.fake_run import attempt_of, demo_spec
from workers.attempt import Attempt, Step

CELL = dataclasses.replace(expand(demo_spec())[0], prompt_tokens=64)


def counted(kv_bytes: dict[int, int]) -> Attempt:
    """`kv_bytes`: by tokens read. Nothing else of the attempt is looked at."""
    whole = attempt_of(CELL, 0)
    steps = tuple(
        Step(token_index=read - 64, t_s=0.0, allocated_bytes=None, reserved_bytes=None, kv_cache_bytes=size)
        for read, size in kv_bytes.items()
    )
    measured = dataclasses.replace(whole.measured, kv_cache_bytes=None)
    return dataclasses.replace(whole, steps=steps, measured=measured)


def test_a_straight_line_is_found_exactly_with_an_interval_of_no_width() -> None:
    found = measured_law([counted({n: 5000 + 24 * n for n in range(100, 200, 10)})])
    assert found is not None
    assert (found.bytes_per_token.value, found.constant_bytes.value) == (24, 5000)
    assert (found.bytes_per_token.low, found.bytes_per_token.high) == (24, 24)
    assert (found.constant_bytes.low, found.constant_bytes.high) == (5000, 5000)


def test_what_was_counted_below_a_window_is_left_out_where_there_is_more() -> None:
    below = {n: 100 * n for n in range(64, 128, 8)}
    beyond = {n: 100 * 127 + 10 * n for n in range(128, 200, 8)}
    found = measured_law([counted(below | beyond)], beyond=128)
    assert found is not None
    assert (found.bytes_per_token.value, found.constant_bytes.value) == (10, 12_700)
    short = measured_law([counted(below)], beyond=128)
    assert short is not None
    assert short.bytes_per_token.value == 100


def test_the_interval_holds_the_truth_and_two_points_have_none() -> None:
    noise = [3, -5, 8, 0, -7, 4, 2, -3, 6, -8]
    found = measured_law(
        [counted({100 + 10 * i: 5000 + 24 * (100 + 10 * i) + error for i, error in enumerate(noise)})]
    )
    assert found is not None
    assert found.bytes_per_token.low is not None
    assert found.bytes_per_token.high is not None
    assert found.bytes_per_token.low < 24 < found.bytes_per_token.high
    assert found.constant_bytes.low is not None
    assert found.constant_bytes.high is not None
    assert found.constant_bytes.low < 5000 < found.constant_bytes.high
    two = measured_law([counted({100: 1000, 200: 2000})])
    assert two is not None
    assert (two.bytes_per_token.value, two.bytes_per_token.low) == (10, None)
    assert measured_law([counted({100: 1000})]) is None


@pytest.mark.parametrize("odd", [10**9, 0])
def test_one_odd_count_moves_nothing(odd: int) -> None:
    line = {n: 5000 + 24 * n for n in range(100, 300, 10)}
    found = measured_law([counted(line | {150: odd})])
    assert found is not None
    assert (found.bytes_per_token.value, found.constant_bytes.value) == (24, 5000)
