"""Whose fault, and what next: as rules over any history, not as cases."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.retry_policy import (
    Blame,
    Limits,
    NextStep,
    RetryHistory,
    Strikes,
    after_attempt,
    history_and_final,
)
from orchestrator.sweep.work.item import Key
from tests.orchestrator.sweep.simulated import attempt, device, spec
from workers.attempt import Attempt
from workers.cell import Lease
from workers.outcome import Outcome

LIMITS = Limits(attempts=3, crashes=2, losses=4, strikes=3)
MACHINE = (Outcome.INFRA_ERROR, Outcome.HANG, Outcome.GPU_FAULT)
RESULTS = tuple(set(Outcome) - {*MACHINE, Outcome.CRASHED, Outcome.CANCELLED})
DEVICES = [device(name) for name in "abc"]


def made(outcome: Outcome, on: int = 0, number: int = 1) -> Attempt:
    from orchestrator.plan import expand

    cell = expand(spec())[0]
    lease = Lease(lease_id=f"x.{number}", cell=cell, attempt=number, time_limit_s=1, stall_timeout_s=1)
    return attempt(lease, DEVICES[on], outcome, started_at=0.0, duration_s=1.0)


POOL = {(outcome, on): made(outcome, on) for outcome in Outcome for on in range(3)}
histories = st.lists(
    st.tuples(
        st.sampled_from([*MACHINE, Outcome.CRASHED, Outcome.OK]), st.integers(0, 2), st.sampled_from(Blame)
    ),
    min_size=40,
    max_size=40,
)


@given(histories)
def test_every_cell_comes_to_an_end_within_its_limits(events: list[tuple[Outcome, int, Blame]]) -> None:
    history, ran = RetryHistory(), 0
    for outcome, on, blame in events:
        if history.alone and blame is Blame.MEMORY:
            continue  # the loop calls this out as oom_host: a result
        history, step = after_attempt(history, POOL[outcome, on], blame, LIMITS)
        ran += 1
        if step is not NextStep.RETRY:
            break
    else:
        raise AssertionError("for ever")
    assert ran <= LIMITS.attempts + LIMITS.crashes + LIMITS.losses + 2
    assert history.attempts == ran
    assert (step is NextStep.QUARANTINE) == (outcome is Outcome.CRASHED and blame is Blame.CELL)


def test_a_result_is_never_run_again_whatever_came_before() -> None:
    for outcome in RESULTS:
        for history in (RetryHistory(), RetryHistory(charged=2, crashes=1, losses=4, attempts=7)):
            assert after_attempt(history, POOL[outcome, 0], Blame.CELL, LIMITS)[1] is NextStep.CLOSE


@given(st.lists(st.sampled_from([*MACHINE, Outcome.CRASHED, Outcome.CANCELLED]), max_size=12))
def test_a_resumed_cell_goes_on_where_it_stood(outcomes: list[Outcome]) -> None:
    attempts = [POOL[outcome, 0] for outcome in outcomes]
    history, final = history_and_final(attempts, LIMITS)
    assert history.attempts == len(outcomes)
    assert history.crashes == outcomes.count(Outcome.CRASHED)
    charged = outcomes.count(Outcome.HANG) + outcomes.count(Outcome.GPU_FAULT)
    assert history.charged == charged
    if final is not None:
        assert final.outcome in (Outcome.HANG, Outcome.GPU_FAULT)
        assert charged >= LIMITS.attempts


def test_the_first_of_two_results_counts() -> None:
    first, second = POOL[Outcome.OOM_DECODE, 0], POOL[Outcome.OK, 1]
    assert history_and_final([first, second], LIMITS)[1] is first


def test_an_attempt_that_was_asked_for_takes_the_place_of_the_result() -> None:
    """Its crashes are counted anew, and until it has a result the cell is open."""
    closed = [
        made(Outcome.CRASHED, number=1),
        made(Outcome.CRASHED, number=2),
        made(Outcome.QUARANTINED, number=3),
    ]
    crashed, cancelled, ok = (
        made(Outcome.CRASHED, number=4),
        made(Outcome.CANCELLED, number=5),
        made(Outcome.OK, number=6),
    )
    assert history_and_final(closed, LIMITS)[1] is closed[-1]
    assert history_and_final([*closed, crashed], LIMITS) == (
        RetryHistory(attempts=4, crashes=1, failed_on=frozenset({DEVICES[0].uuid})),
        None,
    )
    assert history_and_final([*closed, crashed, cancelled], LIMITS)[1] is None
    assert history_and_final([*closed, crashed, cancelled, ok], LIMITS)[1] is ok


def test_what_was_unavailable_ends_its_run_and_is_open_in_the_next() -> None:
    unavailable = made(Outcome.UNAVAILABLE)
    assert after_attempt(RetryHistory(), unavailable, Blame.CELL, LIMITS)[1] is NextStep.CLOSE
    assert history_and_final([unavailable], LIMITS) == (RetryHistory(attempts=1), None)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), max_size=60))
def test_a_device_is_retired_for_three_cells_of_its_own_in_a_row(story: list[tuple[int, int, bool]]) -> None:
    """Against a model that keeps the whole story."""
    strikes = Strikes(LIMITS.strikes)
    run: dict[int, list[int]] = {0: [], 1: [], 2: []}
    everywhere: dict[int, set[int]] = {}
    for cell, on, failed in story:
        outcome = Outcome.INFRA_ERROR if failed else Outcome.OK
        retired = strikes.note(Key(str(cell), "H100"), POOL[outcome, on], Blame.CELL)
        if not failed:
            run[on] = []
            assert not retired
            continue
        run[on].append(cell)
        everywhere.setdefault(cell, set()).add(on)
        assert not retired or len(set(run[on])) >= LIMITS.strikes
        if len({c for c in run[on] if everywhere[c] == {on}}) >= LIMITS.strikes:
            assert retired or everywhere[cell] != {on}


def test_a_lost_node_is_no_strike() -> None:
    strikes = Strikes(1)
    assert not strikes.note(Key("a", "H100"), POOL[Outcome.INFRA_ERROR, 0], Blame.NODE)
    assert strikes.note(Key("a", "H100"), POOL[Outcome.INFRA_ERROR, 0], Blame.CELL)
