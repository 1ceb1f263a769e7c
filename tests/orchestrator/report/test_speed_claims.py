"""What the report says of two speeds: a sentence where the tables carry it, and none where they do not."""

import pytest

from orchestrator.report.speed_claims import Speed, allowed, claim, is_engine, is_faster


def _speed(tokens_per_s: float, repeats: int, spread: float = 0.0, roofline: float | None = None) -> Speed:
    low, high = (tokens_per_s - spread, tokens_per_s + spread) if repeats > 1 else (None, None)
    return Speed("streaming", tokens_per_s, repeats, low, high, roofline)


BASE = Speed("baseline", 100.0, 3, 98.0, 102.0, 0.66)


def test_three_repeats_apart_are_a_difference() -> None:
    assert claim(_speed(110.0, 3, 2.0), BASE) == "it is 1.10× as fast as baseline"


def test_three_repeats_whose_intervals_meet_are_none() -> None:
    assert not is_faster(_speed(110.0, 3, 9.0), BASE)
    assert (
        claim(_speed(110.0, 3, 9.0), BASE) == "it is neither faster nor slower than baseline beyond the noise"
    )


@pytest.mark.parametrize("repeats", [1, 2])
def test_one_run_or_two_say_nothing_of_less_than_half_more(repeats: int) -> None:
    said = claim(_speed(149.0, repeats), BASE)
    assert said == "too few runs to tell whether it is faster than baseline: set “repeats: 3”"


def test_one_run_says_something_of_half_more_and_that_it_is_one() -> None:
    one = Speed("baseline", 100.0, 1)
    assert claim(_speed(150.0, 1), one) == "it is 1.50× as fast as baseline, one run of each"
    assert claim(_speed(50.0, 1), one) == "it is 0.50× as fast as baseline, one run of each"


def test_modes_at_unlike_fractions_of_their_rooflines_are_engines() -> None:
    """As it was measured once: 1.27× shown where the bytes allow 1.02×."""
    streaming = _speed(127.0, 3, 2.0, roofline=0.82)
    assert is_engine(streaming, BASE)
    assert allowed(streaming, BASE) == pytest.approx(1.27 * 0.66 / 0.82)
    assert claim(streaming, BASE) == (
        "it is 1.27× as fast as baseline, which is the engine's doing and not the mode's: they reach 0.82 and 0.66 of "
        "their rooflines, and the bytes allow 1.02×"
    )


@pytest.mark.parametrize("roofline", [0.7, 0.76, None])
def test_modes_at_like_fractions_or_unknown_ones_are_modes(roofline: float | None) -> None:
    streaming = _speed(127.0, 3, 2.0, roofline=roofline)
    assert not is_engine(streaming, BASE)
    assert claim(streaming, BASE) == "it is 1.27× as fast as baseline"


def test_a_mode_without_a_speed_is_not_compared() -> None:
    assert claim(_speed(0.0, 0), BASE) == ""
    assert claim(_speed(10.0, 3), Speed("baseline", 0.0, 0)) == ""
