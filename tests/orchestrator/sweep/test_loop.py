"""The driver's loop over a simulated fleet: what is run where, retried, pruned, retired, resumed."""

from collections import Counter, defaultdict

import pytest

from orchestrator.boundary.question import questions
from orchestrator.journal.errors import JournalFull
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.sweep.run import conduct
from orchestrator.sweep.summary import Summary
from orchestrator.watch import DeviceLost, Notice
from tests.orchestrator.sweep.simulated import (
    Fate,
    FlatEstimates,
    MemoryJournal,
    SimulatedClock,
    SimulatedFleet,
    device,
    finals,
    simulate,
    spec,
)
from workers.attempt import Device
from workers.cell import Lease
from workers.outcome import Outcome


def test_every_cell_runs_once_on_one_device():
    asked = spec(repeats=3)
    played = simulate(asked, expand(asked), [device("a"), device("b")])
    assert Counter(a.outcome for a in played.journal.attempts) == {Outcome.OK: 12}
    assert len(finals(played)) == 12
    assert {a.device.uuid for a in played.journal.attempts} == {"a", "b"}
    assert played.sweep.summary().exit_status == 0


def test_each_kind_runs_every_cell():
    asked = spec()
    played = simulate(asked, expand(asked), [device("a", "H100"), device("b", "A100")])
    assert Counter(a.device.kind for a in played.journal.attempts) == {"H100": 4, "A100": 4}


def test_a_device_that_joins_late_takes_part():
    asked = spec(repeats=10)
    late = device("late")
    played = simulate(
        asked, expand(asked), [device("a")], prepare=lambda fleet, clock: fleet.join(late, clock.now + 50)
    )
    assert Counter(slot for slot, _, _ in played.fleet.leases)["late"] > 10


def test_longest_first_and_modes_interleaved():
    asked = spec(repeats=2)
    played = simulate(asked, expand(asked), [device("a")])
    order = [(lease.cell.length, lease.cell.repeat, lease.cell.mode) for _, lease, _ in played.fleet.leases]
    assert order == [
        (length, repeat, mode)
        for length in (2000, 1000)
        for repeat in (0, 1)
        for mode in ("baseline", "streaming")
    ]


def test_a_machine_fault_is_retried_elsewhere_and_boundedly():
    asked = spec(lengths=[1000], modes=["baseline"])

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, Outcome.GPU_FAULT)

    played = simulate(asked, expand(asked), [device("a"), device("b")], world)
    assert [a.outcome for a in played.journal.attempts] == [Outcome.GPU_FAULT] * 3
    assert [a.attempt for a in played.journal.attempts] == [1, 2, 3]
    first, second = (a.device.uuid for a in played.journal.attempts[:2])
    assert first != second
    assert played.sweep.summary().exit_status == 0


def test_a_cell_that_kills_its_process_is_quarantined_with_its_evidence_and_the_sweep_goes_on():
    asked = spec()
    poison = expand(asked)[0].cell_id

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, Outcome.CRASHED if lease.cell.cell_id == poison else Outcome.OK)

    played = simulate(asked, expand(asked), [device("a")], world)
    story = [a for a in played.journal.attempts if a.cell.cell_id == poison]
    assert [a.outcome for a in story] == [Outcome.CRASHED, Outcome.CRASHED, Outcome.QUARANTINED]
    assert [a.attempt for a in story] == [1, 2, 3]
    assert "2 times" in story[-1].failure.error_message
    assert Counter(finals(played).values()) == {Outcome.OK: 3, Outcome.QUARANTINED: 1}
    assert played.sweep.summary().exit_status == 3


def test_a_device_on_which_different_cells_fail_is_retired_and_its_cells_go_elsewhere():
    asked = spec(repeats=5)

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, Outcome.INFRA_ERROR if on.uuid == "bad" else Outcome.OK)

    played = simulate(asked, expand(asked), [device("good"), device("bad")], world)
    assert played.fleet.retired == ["bad"]
    assert set(finals(played).values()) == {Outcome.OK}
    assert sum(a.device.uuid == "bad" for a in played.journal.attempts) == 3
    assert any(isinstance(e, DeviceLost) and e.for_good for e in played.seen.events)
    assert played.sweep.summary().exit_status == 0


def test_bad_cells_do_not_retire_good_devices():
    asked = spec(repeats=4)

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, Outcome.GPU_FAULT if lease.cell.mode == "baseline" else Outcome.OK)

    played = simulate(asked, expand(asked), [device("a"), device("b")], world)
    assert played.fleet.retired == []
    assert len(finals(played)) == 16


def test_no_device_left_ends_at_once_with_status_1():
    asked = spec(repeats=5)
    played = simulate(asked, expand(asked), [device("bad")], lambda lease, on: Fate(5, Outcome.INFRA_ERROR))
    summary = played.sweep.summary()
    assert played.fleet.retired == ["bad"]
    assert summary.exit_status == 1
    assert summary.left + summary.outcomes[Outcome.INFRA_ERROR] == 20
    assert summary.left == 18
    assert played.clock.now < 1_000_000 + 60


def test_a_lost_node_is_nobodys_fault():
    asked = spec(lengths=[1000], modes=["baseline"])
    losses = iter([True] * 6)

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, lost=next(losses, False), node_lost=True)

    played = simulate(asked, expand(asked), [device("a")], world)
    outcomes = [a.outcome for a in played.journal.attempts]
    assert outcomes == [Outcome.INFRA_ERROR] * 6 + [Outcome.OK]


@pytest.mark.parametrize("late", [0.5, 8, 100])
def test_a_result_that_comes_late_is_a_recorded_duplicate(late: float):
    """Before the retry begins, while it runs, and after it: the cell's outcome is the retry's."""
    asked = spec(lengths=[1000, 20_000], modes=["baseline"])
    once = iter([True])

    def world(lease: Lease, on: Device) -> Fate:
        lost = lease.cell.length == 1000 and next(once, False)
        return Fate(lease.cell.length / 100, lost=lost, node_lost=lost, late=late if lost else None)

    played = simulate(asked, expand(asked), [device("a"), device("b")], world)
    story = [(a.attempt, a.outcome) for a in played.journal.attempts if a.cell.length == 1000]
    assert sorted(story) == [(1, Outcome.INFRA_ERROR), (1, Outcome.OK), (2, Outcome.OK)]
    assert sum("duplicate" in e.text for e in played.seen.events if isinstance(e, Notice)) == 1
    assert len(played.fleet.leases) == 3
    assert played.sweep.summary().outcomes == {Outcome.OK: 2}


def test_an_oom_prunes_longer_cells_of_its_like():
    asked = spec(lengths=[1000, 2000, 4000, 8000], repeats=2)

    def world(lease: Lease, on: Device) -> Fate:
        if lease.cell.mode == "baseline" and lease.cell.length > 1500:
            return Fate(15, Outcome.OOM_DECODE, oom_token_index=1500)
        return Fate(lease.cell.length / 100)

    played = simulate(asked, expand(asked), [device("a")], world)
    outcomes = {(a.cell.mode, a.cell.length, a.cell.repeat): a.outcome for a in played.journal.attempts}
    assert len(played.journal.attempts) == 16
    pruned = [key for key, outcome in outcomes.items() if outcome is Outcome.PRUNED]
    assert sorted(pruned) == [
        ("baseline", 2000, 0),
        ("baseline", 2000, 1),
        ("baseline", 4000, 0),
        ("baseline", 4000, 1),
        ("baseline", 8000, 1),
    ]
    assert (
        "implied by oom_decode"
        in next(a for a in played.journal.attempts if a.outcome is Outcome.PRUNED).failure.error_message
    )
    assert played.sweep.summary().exit_status == 0


def searching_spec(**fields: object):
    return spec(
        modes=["baseline"],
        lengths=[500],
        boundary={"resolution": 64, "max_length": 100_000, "confirm": 2},
        **fields,
    )


def oom_beyond(limit: int):
    def world(lease: Lease, on: Device) -> Fate:
        if lease.cell.length > limit:
            return Fate(limit / 100, Outcome.OOM_DECODE, oom_token_index=limit)
        return Fate(lease.cell.length / 100)

    return world


def test_cells_run_while_the_prediction_of_a_search_is_in_the_making():
    class Late(FlatEstimates):
        left = 5

        def start(self, question, device):
            self.left -= 1
            return None if self.left > 0 else super().start(question, device)

    asked = searching_spec()
    played = simulate(
        asked,
        expand(asked),
        [device("a")],
        oom_beyond(2345),
        questions=questions(asked),
        estimates=Late(),
    )
    purposes = [lease.cell.purpose for _, lease, _ in played.fleet.leases]
    assert (purposes[0], purposes[-1]) == ("measure", "probe")
    [inquiry] = played.sweep.kinds["H100"].searching._inquiries.values()
    assert inquiry.search.done
    assert played.sweep.summary().left == 0


def test_a_boundary_search_ends_with_its_bracket_and_resumes_without_probing_again():
    asked = searching_spec()
    played = simulate(
        asked, expand(asked), [device("a"), device("b")], oom_beyond(2345), questions=questions(asked)
    )
    [inquiry] = played.sweep.kinds["H100"].searching._inquiries.values()
    bracket = inquiry.search.bracket
    assert bracket.last_ok <= 2345 < bracket.first_oom
    assert bracket.first_oom - bracket.last_ok <= 64
    assert bracket.confirmed_ok == bracket.confirmed_oom == 2
    again = simulate(
        asked,
        expand(asked),
        [device("a")],
        oom_beyond(2345),
        questions=questions(asked),
        history=played.journal.attempts,
    )
    assert again.fleet.leases == []
    assert again.sweep.summary().reused == len(finals(played))
    assert again.sweep.summary().computed == 0


def test_a_search_whose_probes_do_not_speak_of_memory_is_given_up():
    asked = searching_spec()
    played = simulate(
        asked,
        expand(asked),
        [device("a")],
        lambda lease, on: Fate(1, Outcome.LOAD_ERROR),
        questions=questions(asked),
    )
    assert len(played.journal.attempts) == 2


def test_resume_runs_only_what_has_no_outcome():
    asked = spec(repeats=3)
    cells = expand(asked)
    rounds = iter(range(200))
    first = simulate(
        asked, cells, [device("a")], stop=lambda: "enough" if next(rounds, None) is None else None
    )
    before = Counter(a.outcome for a in first.journal.attempts)
    assert before[Outcome.CANCELLED] == 1
    assert 0 < before[Outcome.OK] < 12
    assert first.sweep.summary().exit_status == 1
    second = simulate(asked, cells, [device("a")], history=first.journal.attempts)
    assert second.sweep.summary().reused == before[Outcome.OK]
    assert second.sweep.summary().computed == 12 - before[Outcome.OK]
    numbers = defaultdict(list)
    for a in first.journal.attempts + second.journal.attempts:
        numbers[a.cell.cell_id].append(a.attempt)
    assert sorted(map(tuple, numbers.values())) == [(1,)] * 11 + [(1, 2)]


def test_a_resumed_run_remembers_crashes():
    asked = spec(lengths=[1000], modes=["baseline"])
    crash = simulate(asked, expand(asked), [device("a")], lambda lease, on: Fate(1, Outcome.CRASHED))
    one_crash = crash.journal.attempts[:1]
    again = simulate(
        asked, expand(asked), [device("a")], lambda lease, on: Fate(1, Outcome.CRASHED), history=one_crash
    )
    assert [a.outcome for a in again.journal.attempts] == [Outcome.CRASHED, Outcome.QUARANTINED]


def test_a_kind_that_never_comes_is_waited_for_then_given_up():
    asked = spec(devices=["B200", "H100"])
    played = simulate(asked, expand(asked), [device("a", "NVIDIA H100")])
    summary = played.sweep.summary()
    assert len(played.journal.attempts) == 4
    assert summary.exit_status == 1
    assert any(isinstance(e, Notice) and "B200" in e.text for e in played.seen.events)
    assert played.clock.now >= 1_000_000 + 60


def test_idle_devices_are_let_go_at_the_tail_and_called_back_for_a_retry():
    asked = spec(lengths=[1000, 100_000], modes=["baseline"])
    once = iter([True])

    def world(lease: Lease, on: Device) -> Fate:
        if lease.cell.length == 100_000 and next(once, False):
            return Fate(500, lost=True, gone=True, node_lost=True)
        return Fate(lease.cell.length / 100)

    played = simulate(asked, expand(asked), [device("a", node="n1"), device("b", node="n2")], world)
    assert set(finals(played).values()) == {Outcome.OK}
    assert any(isinstance(e, DeviceLost) and "let go" in e.reason for e in played.seen.events)


def test_a_full_disk_ends_the_sweep_with_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: MemoryJournal, records: list[Record]) -> None:
        if len(self.records) == 2:
            raise JournalFull("no room")
        self.records += records

    monkeypatch.setattr(MemoryJournal, "append", append)
    asked = spec()
    summaries: list[Summary] = []
    played = simulate(
        asked, expand(asked), [device("a")], run=lambda it: summaries.append(conduct(it.sweep, it.seen))
    )
    assert len(played.journal.records) == 2
    assert len(played.fleet.leases) == 3  # the one that could not be recorded was not followed by another
    assert summaries[0].exit_status == 1
    assert summaries[0].troubles == ("no room",)
    assert (summaries[0].computed, summaries[0].outcomes, summaries[0].left) == (2, {Outcome.OK: 2}, 2)


def test_a_full_disk_loses_no_count_of_what_came_back_with_a_late_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def append(self: MemoryJournal, records: list[Record]) -> None:
        if len(self.records) == 2:
            raise JournalFull("no room")
        self.records += records

    monkeypatch.setattr(MemoryJournal, "append", append)
    asked = spec(lengths=[1000, 3000], modes=["baseline"])
    once = iter([True])

    def world(lease: Lease, on: Device) -> Fate:
        lost = lease.cell.length == 1000 and next(once, False)
        return Fate(lease.cell.length / 100, lost=lost, node_lost=lost, late=20 if lost else None)

    summaries: list[Summary] = []
    simulate(
        asked,
        expand(asked),
        [device("a"), device("b")],
        world,
        run=lambda it: summaries.append(conduct(it.sweep, it.seen)),
    )
    assert (summaries[0].computed, summaries[0].outcomes, summaries[0].left) == (1, {Outcome.OK: 1}, 1)


def test_a_released_device_that_never_comes_back_does_not_keep_the_sweep_for_ever() -> None:
    asked = spec(lengths=[1000, 100_000], modes=["baseline"])

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(500, lost=True, gone=True, node_lost=True) if lease.cell.length == 100_000 else Fate(10)

    def forget(fleet: SimulatedFleet, clock: SimulatedClock) -> None:
        fleet.recall = fleet.released.clear  # type: ignore[method-assign]

    played = simulate(asked, expand(asked), [device("a"), device("b")], world, prepare=forget)
    assert played.sweep.summary().exit_status == 1
    assert "no H100 device is left" in played.sweep.summary().troubles[-1]
