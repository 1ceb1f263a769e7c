"""The search where a cheaper run stands in for the first real one at each value: right, or wrong."""

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.boundary.search import Bracket, Probe, Search
from tests.orchestrator.boundary.fake_card import FakeCard, Told, assert_brackets, drive


def searching(predicted: int | None, resolution: int, confirm: int) -> Search:
    return Search(
        predicted=predicted,
        floor=max((predicted or 0) // 16, resolution),
        resolution=resolution,
        max_value=200_000,
        confirm=confirm,
        scouts=True,
    )


@settings(max_examples=300)
@given(
    threshold=st.integers(0, 250_000),
    scouted=st.one_of(st.none(), st.integers(0, 250_000)),
    factor=st.one_of(st.none(), st.floats(0.1, 10)),
    resolution=st.sampled_from([1, 16, 64, 1024]),
    confirm=st.integers(1, 3),
    k=st.integers(1, 4),
)
def test_both_ends_are_confirmed_by_real_runs_whatever_the_scouts_said(
    threshold: int, scouted: int | None, factor: float | None, resolution: int, confirm: int, k: int
) -> None:
    search = searching(None if factor is None else int(threshold * factor), resolution, confirm)
    real, scout = FakeCard(threshold), FakeCard(threshold if scouted is None else scouted)

    def run(probe: Probe) -> Told:
        return (scout if probe.confirmation == 0 else real).run(probe)

    drive(search, run, k, most=500)
    bracket = search.bracket
    assert_brackets(bracket, threshold, resolution, 200_000)
    if not bracket.censored:
        assert bracket.confirmed_oom == confirm
        assert bracket.confirmed_ok == (confirm if bracket.last_ok else 0)
    for end in (bracket.last_ok, bracket.first_oom):
        assert end is None or end in {probe.value for probe in real.runs}
    if scout.threshold == threshold:
        assert bracket.refuted == ()
        assert {probe.value for probe in real.runs} <= {bracket.last_ok, bracket.first_oom}
        assert len(real.runs) <= 2 * confirm


def test_a_scout_that_was_refuted_is_told_and_none_is_asked_again() -> None:
    search = searching(8000, 64, 1)
    real, scout = FakeCard(8000), FakeCard(7000)
    drive(search, lambda probe: (real if probe.confirmation else scout).run(probe))
    assert search.bracket.refuted == (7040,)
    assert (search.bracket.last_ok, search.bracket.first_oom) == (8000, 8064)
    asked = len(scout.runs)
    assert scout.runs[-1].value == 7040 or asked < 12


def test_scouts_alone_are_no_bracket() -> None:
    search = searching(8000, 64, 2)
    card = FakeCard(8000)
    scouting = search.next_probes(1)
    while scouting[0].confirmation == 0:
        search.observe(scouting[0], *card.run(scouting[0]))
        assert search.bracket == Bracket(None, None, 0, 0, False)
        scouting = search.next_probes(1)
    assert scouting == [Probe(8064, 1)]
    search.observe(scouting[0], *card.run(scouting[0]))
    assert search.bracket == Bracket(None, 8064, 0, 1, False)
