"""The search over devices that contradict themselves, and searches that are interrupted."""

import random
from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.boundary.search import Bracket, Probe, Search
from tests.orchestrator.boundary.fake_card import FakeCard, Told, assert_brackets, build, drive

resolutions = st.sampled_from([1, 7, 16, 64, 100, 1024])
workers = st.integers(1, 5)
confirms = st.integers(1, 4)


@settings(max_examples=100)
@given(data=st.data(), threshold=st.integers(0, 30_000), confirm=st.integers(1, 4), tells=st.booleans())
def test_noise_that_flips_runs_terminates_with_each_value_run_at_most_2k_minus_1_times(
    data: st.DataObject, threshold: int, confirm: int, tells: bool
) -> None:
    search = build(threshold, threshold, 256, confirm, max_value=40_000)
    card = FakeCard(threshold, tells)

    def flipped(probe: Probe) -> Told:
        passed, *account = card.run(probe)
        if data.draw(st.integers(0, 4)) == 0:
            return not passed, data.draw(st.one_of(st.none(), st.integers(0, probe.value - 1))), None
        return passed, *account

    drive(search, flipped, most=2_000)
    bracket = search.bracket
    assert bracket.censored or bracket.first_oom is not None
    for value in {probe.value for probe in card.runs}:
        assert sum(probe.value == value for probe in card.runs) <= 2 * confirm - 1
    if not bracket.censored:
        assert bracket.confirmed_oom == confirm


@settings(max_examples=100)
@given(
    flips=st.dictionaries(st.integers(0, 60), st.just(0), max_size=6),
    threshold=st.integers(300, 30_000),
    k=workers,
)
def test_a_minority_of_wrong_runs_does_not_move_the_bracket(
    flips: dict[int, int], threshold: int, k: int
) -> None:
    """At each value at most 1 of 3 runs lies, and such a run cannot say how far it came."""
    search = build(threshold, threshold, 128, 2, max_value=40_000)
    card = FakeCard(threshold, tells=False)
    lied: set[int] = set()

    def run(probe: Probe) -> Told:
        passed, *account = card.run(probe)
        if len(card.runs) in flips and probe.value not in lied:
            lied.add(probe.value)
            return not passed, None, None
        return passed, *account

    drive(search, run, k)
    bracket = search.bracket
    assert bracket.confirmed_oom == 2
    assert bracket.first_oom is not None
    honest = [value for value in (bracket.last_ok, bracket.first_oom) if value]
    assert all((value <= threshold) == (value == bracket.last_ok) for value in honest)


@settings(max_examples=100)
@given(
    islands=st.lists(st.integers(1, 300), min_size=1, max_size=40, unique=True),
    k=workers,
    confirm=st.integers(1, 3),
)
def test_non_monotone_devices_end_and_are_reported(islands: list[int], k: int, confirm: int) -> None:
    """Any set of values may pass: the bracket's own two ends are true, and passes above it are named."""
    passing = {100 * island for island in islands}
    search = Search(predicted=15_000, floor=1_000, resolution=100, max_value=30_000, confirm=confirm)
    runs: dict[int, bool] = {}

    def run(probe: Probe) -> Told:
        runs[probe.value] = probe.value in passing
        return runs[probe.value], None, None

    drive(search, run, k)
    bracket = search.bracket
    assert bracket.last_ok is None or bracket.last_ok in passing
    assert bracket.first_oom is None or bracket.first_oom not in passing
    if bracket.first_oom is not None:
        high = bracket.first_oom
        low = bracket.last_ok or 0
        assert high - low <= 100
        wrong = {value for value, ok in runs.items() if (ok and value > high) or (not ok and value < low)}
        assert set(bracket.non_monotone) == wrong


def test_a_pass_above_the_boundary_is_named() -> None:
    search = Search(predicted=1_000, floor=100, resolution=100, max_value=10_000, confirm=1)
    for value, passed in ((100, True), (1_200, True), (900, True), (1_000, False)):
        search.observe(Probe(value, 0), passed)
    bracket = search.bracket
    assert (bracket.last_ok, bracket.first_oom) == (900, 1_000)
    assert bracket.non_monotone == (1_200,)
    assert search.done


def interruptions(search: Search, run: Callable[[Probe], Told]) -> Iterator[list[tuple[Probe, Told]]]:
    """The journal after each finished probe."""
    journal: list[tuple[Probe, Told]] = []
    yield list(journal)
    while not search.done:
        probe = search.next_probes(1)[0]
        told = run(probe)
        search.observe(probe, *told)
        journal.append((probe, told))
        yield list(journal)


@settings(max_examples=40)
@given(
    threshold=st.integers(0, 120_000),
    factor=st.floats(0.2, 5),
    confirm=confirms,
    tells=st.booleans(),
    k=workers,
    shuffle=st.randoms(use_true_random=False),
)
def test_replay_of_the_journal_resumes_at_any_point_to_the_same_end(
    threshold: int, factor: float, confirm: int, tells: bool, k: int, shuffle: random.Random
) -> None:
    def fresh() -> Search:
        return build(threshold, int(threshold * factor), 64, confirm, max_value=100_000)

    card = FakeCard(threshold, tells)
    undisturbed = fresh()
    for journal in interruptions(undisturbed, card.run):
        resumed = fresh()
        shuffle.shuffle(journal)
        for probe, told in journal:
            resumed.observe(probe, *told)
        before = resumed.probes
        drive(resumed, card.run, k)
        assert resumed.bracket.last_ok == _end(fresh(), card).last_ok
        assert resumed.bracket.first_oom == _end(fresh(), card).first_oom
        assert resumed.probes >= before
    assert resumed.probes == undisturbed.probes  # the whole journal: nothing is run again


def _end(search: Search, card: FakeCard) -> Bracket:
    drive(search, card.run)
    return search.bracket


@settings(max_examples=100)
@given(threshold=st.integers(0, 50_000), lost=st.sets(st.integers(0, 40), max_size=15), k=workers)
def test_lost_probes_are_handed_out_again(threshold: int, lost: set[int], k: int) -> None:
    search = build(threshold, threshold, 64, 2, max_value=40_000)
    card = FakeCard(threshold)
    pending: list[Probe] = []
    turn = 0
    while not search.done:
        pending += search.next_probes(k - len(pending))
        probe = pending.pop(0)
        if turn in lost:
            search.observe_lost(probe)
        else:
            search.observe(probe, *card.run(probe))
        turn += 1
    assert_brackets(search.bracket, threshold, 64, 40_000)
    assert len(set(card.runs)) == len(card.runs)
