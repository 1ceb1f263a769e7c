"""A budget that the weights alone exceed: known beforehand, on record, and nothing runs."""

from collections import Counter, defaultdict

from orchestrator.boundary.question import questions
from orchestrator.boundary.replay import replay
from orchestrator.boundary.start import search_for
from orchestrator.plan import expand
from tests.orchestrator.sweep.simulated import Fate, FlatEstimates, device, simulate, spec
from workers.outcome import Outcome


def test_a_budget_below_the_weights_is_an_outcome_without_a_device():
    asked = spec(budgets=["1GiB", "8GiB"])
    estimates = FlatEstimates(weights_bytes=2 * 2**30)
    played = simulate(asked, expand(asked), [device("a"), device("b")], estimates=estimates)
    by_budget = defaultdict(Counter)
    for attempt in played.journal.attempts:
        by_budget[attempt.cell.budget][attempt.outcome] += 1
    assert by_budget == {2**30: {Outcome.OOM_LOAD: 4}, 8 * 2**30: {Outcome.OK: 4}}
    assert {lease.cell.budget for _, lease, _ in played.fleet.leases} == {8 * 2**30}
    (told, *_) = [a for a in played.journal.attempts if a.outcome is Outcome.OOM_LOAD]
    assert told.failure.error_message == (
        "predicted, no device touched: the weights take 2.00 GiB, the budget is 1 GiB"
    )
    assert played.sweep.summary().exit_status == 0


def test_a_search_below_the_weights_ends_without_a_device():
    asked = spec(budgets=["1GiB", "8GiB"], boundary={"max_length": 4000, "resolution": 1000, "confirm": 2})
    estimates = FlatEstimates(weights_bytes=2 * 2**30)
    searched = questions(asked)
    played = simulate(
        asked,
        [],
        [device("a"), device("b")],
        lambda lease, on: Fate(1.0),
        questions=searched,
        estimates=estimates,
    )
    assert {lease.cell.budget for _, lease, _ in played.fleet.leases} == {8 * 2**30}
    for question in searched:
        search = search_for(question, 0)
        replay(question, search, played.journal.attempts)
        assert search.done
        assert search.bracket.censored == (question.cell.budget == 8 * 2**30)
        if not search.bracket.censored:
            assert (search.bracket.last_ok, search.bracket.confirmed_oom) == (None, 2)
    assert played.sweep.summary().exit_status == 0
