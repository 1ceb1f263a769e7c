"""Cells that need their node to themselves: whose node is emptied, and that nothing waits for it in vain."""

from collections import Counter

from orchestrator.plan import expand
from tests.orchestrator.sweep.simulated import Fate, SimulatedClock, device, finals, simulate, spec
from workers.attempt import Device
from workers.cell import Lease
from workers.outcome import Outcome


def test_a_victim_of_host_memory_runs_again_alone_and_that_tells():
    asked = spec(lengths=[1000, 2000, 4000], repeats=2)
    hog = expand(asked)[0].cell_id

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(40, lost=True, host_oom_victim=True) if lease.cell.cell_id == hog else Fate(7)

    played = simulate(asked, expand(asked), [device(name) for name in "abc"], world)
    story = [a for a in played.journal.attempts if a.cell.cell_id == hog]
    assert [a.outcome for a in story] == [Outcome.INFRA_ERROR, Outcome.OOM_HOST]
    alone = story[1]
    for other in played.journal.attempts:
        if other is not alone:
            assert (
                other.started_at >= alone.started_at + alone.duration_s
                or other.started_at + other.duration_s <= alone.started_at
            )
    assert Counter(finals(played).values()) == {Outcome.OK: 11, Outcome.OOM_HOST: 1}


def test_nothing_starts_on_a_node_before_the_memory_of_a_victim_is_free():
    """For two seconds, whoever starts is ended as well, and looks as if it had taken the memory."""
    asked = spec(lengths=[1000], modes=["baseline"], repeats=6)
    hog = expand(asked)[0].cell_id
    ended = [-10.0]

    def world(lease: Lease, on: Device) -> Fate:
        now = played_clock[0].now
        if lease.cell.cell_id == hog:
            ended.append(now + 8)
            return Fate(8, lost=True, host_oom_victim=True)
        if any(0 <= now - at < 1.5 for at in ended):
            return Fate(0.5, lost=True, host_oom_victim=True)
        return Fate(7)

    played_clock: list[SimulatedClock] = []
    played = simulate(
        asked,
        expand(asked),
        [device("a"), device("b")],
        world,
        prepare=lambda fleet, clock: played_clock.append(clock),
    )
    assert Counter(finals(played).values()) == {Outcome.OK: 5, Outcome.OOM_HOST: 1}


def test_a_victim_that_comes_to_the_front_of_another_keeps_no_node_waiting():
    """The later cell of the queue fails first, so its node is emptied for it while the earlier one still runs."""
    asked = spec(lengths=[1000], modes=["baseline"], repeats=6)
    cells = [cell.cell_id for cell in expand(asked)]
    begun: Counter[str] = Counter()

    def world(lease: Lease, on: Device) -> Fate:
        begun[lease.cell.cell_id] += 1
        if begun[lease.cell.cell_id] == 1 and lease.cell.cell_id in cells[:2]:
            took = {cells[0]: 40, cells[1]: 10}[lease.cell.cell_id]
            return Fate(took, lost=True, host_oom_victim=True)
        return Fate(7)

    played = simulate(asked, expand(asked), [device("a"), device("b")], world)
    assert Counter(finals(played).values()) == {Outcome.OK: 6}


def test_a_node_is_not_emptied_for_a_kind_that_has_left_it():
    """Two kinds on one node: the one whose victim waits for the node goes; the other's cells run."""
    asked = spec(lengths=[1000], modes=["baseline"], repeats=8)
    leaving, staying = device("a", "H100"), device("b", "A100")

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(5, lost=True, host_oom_victim=True) if on is leaving else Fate(30)

    played = simulate(
        asked,
        expand(asked),
        [leaving, staying],
        world,
        prepare=lambda fleet, clock: fleet.leave(leaving, clock.now + 10),
    )
    outcomes = [a.outcome for a in played.journal.attempts if a.device.kind == "A100"]
    assert Counter(outcomes) == {Outcome.OK: 8}


def test_a_victim_that_is_pruned_while_it_waits_keeps_no_node_waiting():
    asked = spec(lengths=[1000, 2000, 4000], modes=["baseline"])

    def world(lease: Lease, on: Device) -> Fate:
        if lease.cell.length == 4000:
            return Fate(5, lost=True, host_oom_victim=True)
        return Fate(20, Outcome.OOM_DECODE, oom_token_index=1500) if lease.cell.length == 2000 else Fate(7)

    played = simulate(asked, expand(asked), [device("a"), device("b")], world)
    assert {a.cell.length: a.outcome for a in played.journal.attempts} == {
        4000: Outcome.PRUNED,
        2000: Outcome.OOM_DECODE,
        1000: Outcome.OK,
    }
