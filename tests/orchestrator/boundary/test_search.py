"""The search over synthetic devices: thresholds, wrong predictions, wrong accounts."""

import math

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from orchestrator.boundary.search import Bracket, Probe, Search
from tests.orchestrator.boundary.fake_card import FakeCard, Told, assert_brackets, build, drive

resolutions = st.sampled_from([1, 7, 16, 64, 100, 1024])
workers = st.integers(1, 5)
confirms = st.integers(1, 4)


@settings(max_examples=150)
@given(
    threshold=st.integers(0, 250_000),
    factor=st.floats(0.1, 10),
    resolution=resolutions,
    confirm=confirms,
    k=workers,
    tells=st.booleans(),
)
def test_the_bracket_holds_the_threshold_even_when_the_prediction_is_wrong_by_ten(
    threshold: int, factor: float, resolution: int, confirm: int, k: int, tells: bool
) -> None:
    search = build(threshold, int(threshold * factor), resolution, confirm)
    card = FakeCard(threshold, tells)
    drive(search, card.run, k, most=400)
    bracket = search.bracket
    assert_brackets(bracket, threshold, resolution, 200_000)
    if not bracket.censored:
        assert bracket.confirmed_oom == confirm
        assert bracket.confirmed_ok == (confirm if bracket.last_ok else 0)
    assert search.probes == len(card.runs) == len(set(card.runs))


@settings(max_examples=300)
@given(
    threshold=st.integers(64, 180_000),
    error=st.floats(-0.1, 0.1),
    resolution=resolutions,
    chunk=st.sampled_from([None, 0.25, 1, 2, 8]),
    confirm=confirms,
)
@example(threshold=105_420, error=-0.0213, resolution=1024, chunk=8, confirm=1)
@example(threshold=12_442, error=0.02998, resolution=1, chunk=8, confirm=1)
def test_three_probes_beyond_the_confirmations_within_three_percent_four_within_ten(
    threshold: int, error: float, resolution: int, chunk: float | None, confirm: int
) -> None:
    """A failed run tells the value at which it failed, or, reading a prompt in chunks, the chunk.

    A chunk of eight resolutions leaves three cuts: one probe more.
    """
    predicted = max(round(threshold * (1 + error)), 1)
    search = build(threshold, predicted, resolution, confirm, max_value=1_000_000)
    card = FakeCard(threshold, stride=None if chunk is None else max(int(chunk * resolution), 1))
    drive(search, card.run)
    assert_brackets(search.bracket, threshold, resolution, 1_000_000)
    off = abs(predicted - threshold) / threshold
    if off <= 0.1:
        assert search.probes <= 2 * confirm + (3 if off <= 0.03 else 4) + (chunk == 8)


def most_for_bisection(runs: list[Probe], threshold: int, resolution: int, confirm: int) -> int:
    """Runs up to the first failure, a bisection of what it left open, and the confirmations of both ends.

    Where an end is not a value that a cut would try, it costs a run of its own.
    """
    values = list(dict.fromkeys(probe.value for probe in runs))
    first = next(index for index, value in enumerate(values) if value > threshold)
    width = -(-(values[first] - max(values[:first], default=0)) // resolution)
    return first + 1 + max(width - 1, 0).bit_length() + 2 * (confirm - 1)


@settings(max_examples=300)
@given(
    data=st.data(),
    threshold=st.integers(0, 190_000),
    factor=st.floats(0.1, 10),
    resolution=resolutions,
    confirm=confirms,
    stride=st.sampled_from([None, 1, 100, 5_000]),
)
def test_wrong_predictions_and_wrong_accounts_cost_two_probes_more_than_a_bisection(
    data: st.DataObject, threshold: int, factor: float, resolution: int, confirm: int, stride: int | None
) -> None:
    search = build(threshold, int(threshold * factor), resolution, confirm, max_value=10_000_000)
    runs: list[Probe] = []

    def lie(probe: Probe) -> Told:
        runs.append(probe)
        if probe.value <= threshold:
            return True, None, None
        passed_up_to = data.draw(st.integers(0, probe.value - 1))
        return False, passed_up_to, None if stride is None else passed_up_to + stride

    drive(search, lie)
    assert_brackets(search.bracket, threshold, resolution, 10_000_000)
    assert len(runs) <= most_for_bisection(runs, threshold, resolution, confirm) + 2


@settings(max_examples=150)
@given(
    threshold=st.integers(0, 150_000),
    factor=st.floats(0.1, 10),
    resolution=resolutions,
    confirm=confirms,
    k=st.integers(1, 8),
    tells=st.booleans(),
)
def test_no_value_is_run_again_before_the_bracket_is_final(
    threshold: int, factor: float, resolution: int, confirm: int, k: int, tells: bool
) -> None:
    search = build(threshold, int(threshold * factor), resolution, confirm)
    card = FakeCard(threshold, tells)
    drive(search, card.run, k)
    repeated = {probe.value for probe in card.runs if probe.confirmation}
    assert repeated <= {search.bracket.last_ok, search.bracket.first_oom}


@settings(max_examples=150)
@given(threshold=st.integers(64, 180_000), error=st.floats(-0.1, 0.1), resolution=resolutions)
def test_runs_that_cannot_tell_cost_a_bisection_of_the_predicted_interval(
    threshold: int, error: float, resolution: int
) -> None:
    prediction = round(threshold * (1 + error))
    assume(abs(prediction - threshold) <= 0.1 * threshold)
    search = build(threshold, prediction, resolution, 1, max_value=1_000_000)
    drive(search, FakeCard(threshold, tells=False).run)
    interval = 0.08 * threshold + 3 * resolution  # between two of the values that the prediction names
    assert search.probes <= 5 + math.ceil(math.log2(interval / resolution))


@settings(max_examples=100)
@given(threshold=st.integers(50_000, 100_000), k=st.integers(2, 8))
def test_k_devices_cut_the_interval_in_more_than_two(threshold: int, k: int) -> None:
    """Counted in rounds of k probes, it takes about log(interval) to the base k + 1."""

    def rounds(k: int) -> int:
        search = Search(predicted=75_000, floor=64, resolution=1, max_value=200_000, confirm=1)
        count = 0
        while not search.done:
            for probe in search.next_probes(k):
                search.observe(probe, probe.value <= threshold)
            count += 1
        return count

    interval_rounds = math.ceil(math.log(70_000, k + 1))
    assert rounds(k) <= 5 + interval_rounds + 1
    assert rounds(k) < rounds(1)


def test_constant_memory_climbs_from_the_floor_to_the_ceiling_once() -> None:
    search = Search(predicted=None, floor=64, resolution=64, max_value=100_000, confirm=2)
    card = FakeCard(10**9)
    drive(search, card.run)
    assert [probe.value for probe in card.runs] == [64, 100_000]
    assert search.bracket == Bracket(100_000, None, 1, 0, True)


def test_a_ceiling_that_passes_against_the_prediction_is_confirmed() -> None:
    search = Search(predicted=1_000, floor=64, resolution=64, max_value=4_000, confirm=3)
    drive(search, FakeCard(10**9).run)
    assert search.bracket == Bracket(4_000, None, 3, 0, True)


def test_the_ceiling_is_never_the_first_probe() -> None:
    search = Search(predicted=10**9, floor=64, resolution=64, max_value=4_096, confirm=2)
    assert search.next_probes(8) == [Probe(64, 0)]
    assert search.next_probes(8) == []


def test_one_run_beyond_the_prediction_leaves_only_confirmations() -> None:
    search = Search(predicted=10_000, floor=512, resolution=64, max_value=10**6, confirm=2)
    card = FakeCard(10_121)
    drive(search, card.run)
    assert search.bracket == Bracket(10_112, 10_176, 2, 2, False)
    assert search.probes == 2 + 4
    assert card.runs[1].value > 10_300


def test_an_account_a_little_below_a_pass_still_points_at_the_next_value() -> None:
    """A chunked prompt's own count misses by a few tokens, and the value below it passed already."""
    search = Search(predicted=30_247, floor=1_856, resolution=64, max_value=10**6, confirm=1)
    card = FakeCard(30_240)
    search.observe(Probe(1_856, 0), True)
    search.observe(Probe(33_280, 0), False, 30_176)
    search.observe(Probe(30_208, 0), True)
    drive(search, lambda probe: (card.run(probe)[0], 30_176, None))
    assert search.bracket == Bracket(30_208, 30_272, 1, 1, False)
    assert search.probes == 4


def test_chunks_that_pass_beyond_the_boundary_cost_no_bisection() -> None:
    """The pass behind a chunked prompt needs more memory than the chunks: a longer prompt's own account names a value
    that fails. Values and accounts are those of the pocket model under 48 MiB."""
    search = Search(predicted=2_572, floor=160, resolution=64, max_value=8_000, confirm=2)
    accounts = {2_688: (2_576, 2_608), 2_624: (2_576, 2_608), 2_560: (2_528, 2_560)}
    card = FakeCard(2_528)
    drive(search, lambda probe: (card.run(probe)[0], *accounts.get(probe.value, (None, None))))
    assert search.bracket == Bracket(2_496, 2_560, 2, 2, False)
    assert [probe.value for probe in card.runs[:4]] == [128, 2_688, 2_560, 2_496]
    assert search.probes == 2 + 4


@settings(max_examples=150)
@given(threshold=st.integers(2_000, 100_000), error=st.floats(-0.03, 0.03), excess=st.integers(0, 60))
def test_accounts_that_name_a_little_too_much_are_followed_downwards(
    threshold: int, error: float, excess: int
) -> None:
    """A value that an account names and that fails gives an account of its own, and the search goes on from there."""
    search = build(threshold, round(threshold * (1 + error)), 64, 2, max_value=1_000_000)
    runs: list[Probe] = []

    def run(probe: Probe) -> Told:
        runs.append(probe)
        if probe.value <= threshold:
            return True, None, None
        whole = min(threshold + excess, probe.value - 1) // 16 * 16
        return False, whole, min(whole + 16, probe.value)

    drive(search, run)
    assert_brackets(search.bracket, threshold, 64, 1_000_000)
    assert search.probes <= 4 + 3
    assert search.probes <= most_for_bisection(runs, threshold, 64, 2) + 2


def test_nothing_passes() -> None:
    search = Search(predicted=1_000, floor=64, resolution=64, max_value=10**6, confirm=2)
    drive(search, FakeCard(0).run)
    assert search.bracket == Bracket(None, 64, 0, 2, False)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Search(predicted=None, floor=1, resolution=0, max_value=10, confirm=1)
