"""`repeats: auto`: a cell runs again until its speed is known well enough, or often enough."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from orchestrator.plan import expand
from orchestrator.spec import SpecError, load_spec
from orchestrator.student_t import half_width
from orchestrator.sweep.work.repeating import MOST_REPEATS, RATIO_WIDTH
from tests.orchestrator.sweep.simulated import Fate, Played, World, device, finals, simulate, spec
from workers.attempt import Attempt
from workers.outcome import Outcome

ASKED = spec(repeats="auto", lengths=[1000])
STEADY = {"baseline": [100.0], "streaming": [200.0]}


def _world(speeds: dict[str, list[float]], outcome: Outcome = Outcome.OK) -> World:
    given = {mode: itertools.cycle(values) for mode, values in speeds.items()}
    return lambda lease, on: Fate(1.0, outcome, tokens_per_s=next(given[lease.cell.mode]))


def _runs(played: Played) -> Counter[str]:
    return Counter(attempt.cell.mode for attempt in played.journal.attempts)


def test_a_steady_cell_runs_three_times() -> None:
    played = simulate(ASKED, expand(ASKED), [device("a")], _world(STEADY))
    assert _runs(played) == {"baseline": 3, "streaming": 3}


def test_an_unsteady_cell_runs_on_and_its_neighbour_does_not() -> None:
    played = simulate(
        ASKED, expand(ASKED), [device("a")], _world(STEADY | {"baseline": [100.0, 104.0, 98.0, 101.0]})
    )
    runs = _runs(played)
    assert runs["streaming"] == 3
    assert 3 < runs["baseline"] < MOST_REPEATS
    speeds = [a.measured.tokens_per_s or 0.0 for a in played.journal.attempts if a.cell.mode == "baseline"]
    wanted = RATIO_WIDTH / 2**0.5
    assert (half_width(speeds) or 1.0) / (sum(speeds) / len(speeds)) <= wanted
    assert (half_width(speeds[:-1]) or 1.0) / (sum(speeds[:-1]) / (len(speeds) - 1)) > wanted
    assert sorted(a.cell.repeat for a in played.journal.attempts if a.cell.mode == "baseline") == list(
        range(runs["baseline"])
    )


def test_a_cell_whose_speed_stays_unknown_stops_at_the_cap() -> None:
    played = simulate(
        ASKED, expand(ASKED), [device("a"), device("b")], _world(STEADY | {"baseline": [50.0, 150.0]})
    )
    assert _runs(played) == {"baseline": MOST_REPEATS, "streaming": 3}
    assert played.sweep.summary().exit_status == 0


def test_what_runs_out_of_memory_is_not_repeated_further() -> None:
    played = simulate(ASKED, expand(ASKED), [device("a")], _world(STEADY, Outcome.OOM_DECODE))
    assert len(finals(played)) == 6


def test_a_workload_whose_speed_counts_nowhere_runs_its_first_repeats_only() -> None:
    scored = spec(repeats="auto", lengths=[1000], workload="score")
    played = simulate(scored, expand(scored), [device("a")], _world(STEADY | {"baseline": [50.0, 150.0]}))
    assert _runs(played) == {"baseline": 3, "streaming": 3}


@pytest.mark.parametrize("cut", [2, 4, 7, 9])
def test_a_run_that_was_stopped_goes_on_where_it_was(cut: int) -> None:
    """Each repeat has a speed of its own, whenever it runs."""
    speed: Callable[[Attempt], float] = lambda a: 100.0 + 7 * ((a.cell.repeat * 5) % 3)  # noqa: E731
    world: World = lambda lease, on: Fate(1.0, tokens_per_s=100.0 + 7 * ((lease.cell.repeat * 5) % 3))  # noqa: E731
    whole = simulate(ASKED, expand(ASKED), [device("a")], world)
    assert len(whole.journal.attempts) > cut
    again = simulate(ASKED, expand(ASKED), [device("a")], world, history=whole.journal.attempts[:cut])
    found: dict[str, list[int]] = defaultdict(list)
    for attempt in [*whole.journal.attempts[:cut], *again.journal.attempts]:
        assert attempt.measured.tokens_per_s == speed(attempt)
        found[attempt.cell.mode].append(attempt.cell.repeat)
    assert {mode: sorted(repeats) for mode, repeats in found.items()} == {
        mode: list(range(count)) for mode, count in _runs(whole).items()
    }


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(SpecError, match="repeats"):
        load_spec("{name: a, models: [pocket], repeats: often}")
