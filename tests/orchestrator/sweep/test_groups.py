"""Cells for several devices of one node, on a simulated fleet: each runs, none waits for ever, no device runs two."""

import itertools
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestrator.sweep.simulated import (
    Fate,
    Played,
    SimulatedClock,
    SimulatedFleet,
    device,
    finals,
    simulate,
    spec,
)
from workers.attempt import Device
from workers.cell import Cell, Lease, ModelRef
from workers.outcome import Outcome


def cell(number: int, devices: int, seconds: int = 10) -> Cell:
    return Cell(
        model=ModelRef(target=f"model-{number % 2}"),
        mode="baseline",
        engine="eager",
        prompt_tokens=1 + number,
        length=100 * seconds,
        devices=devices,
    )


def cluster(*sizes: int) -> list[Device]:
    return [
        device(f"{node}-{k}", node=f"node-{node}") for node, size in enumerate(sizes) for k in range(size)
    ]


def check_devices(played: Played) -> None:
    """Each cell had as many devices as it asks for, of one node, and no device ran two cells at a time."""
    busy: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (slots, began, ends), (_, lease, _) in zip(played.fleet.groups, played.fleet.leases, strict=True):
        assert len(set(slots)) == len(slots) == lease.cell.devices
        assert len({played.fleet.devices[slot].node for slot in slots}) == 1
        for slot in slots:
            busy[slot].append((began, ends))
    for spans in busy.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


_CELLS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 30)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), _CELLS, st.integers(0, 2**16))
def test_every_cell_that_a_node_has_devices_for_runs(
    sizes: list[int], asked: list[tuple[int, int]], broken: int
) -> None:
    cells = [cell(number, devices, seconds) for number, (devices, seconds) in enumerate(asked)]

    def world(lease: Lease, on: Device) -> Fate:
        """The first attempt at some cells is lost with its device, or hangs."""
        number = lease.cell.prompt_tokens
        if lease.attempt == 1 and broken >> (number % 16) & 1:
            lost = number % 2 == 0
            return Fate(lease.cell.length / 100, Outcome.OK if lost else Outcome.HANG, lost=lost)
        return Fate(lease.cell.length / 100)

    played = simulate(spec(), cells, cluster(*sizes), world)

    ends = finals(played)
    for one in cells:
        possible = one.devices <= max(sizes)
        assert ends[one.cell_id, "H100"] is (Outcome.OK if possible else Outcome.UNAVAILABLE)
    check_devices(played)
    assert played.sweep.summary().left == 0


def test_a_large_group_is_not_starved_by_small_cells() -> None:
    """It is the longest: it waits for what runs, and for nothing else."""
    small = [cell(number, 1, 10) for number in range(40)]
    large = cell(99, 4, 11)
    later = cell(98, 3, 5)
    played = simulate(spec(), [*small, later, large], cluster(4))
    start = {lease.cell: began for _, lease, began in played.fleet.leases}
    assert start[large] == min(start.values())
    assert start[later] > start[large]

    late = simulate(
        spec(),
        [*small, large],
        cluster(3),
        prepare=lambda fleet, clock: fleet.join(device("0-3", node="node-0"), clock.now + 15),
    )
    start = {lease.cell: began for _, lease, began in late.fleet.leases}
    assert start[large] - min(start.values()) <= 21, "after the cells that ran when its fourth device came"
    check_devices(late)


def test_groups_of_several_sizes_pass_each_other() -> None:
    cells = [cell(number, devices, 10) for number in range(6) for devices in (1, 2, 3, 5)]
    played = simulate(spec(), list(dict.fromkeys(cells)), cluster(5, 3))
    assert set(finals(played).values()) == {Outcome.OK}
    check_devices(played)
    others = [slots for slots, _, _ in played.fleet.groups if len(slots) < 5]
    assert any(played.fleet.devices[slots[0]].node == "node-1" for slots in others)


def test_devices_that_no_waiting_cell_can_use_are_let_go() -> None:
    cells = [cell(number, 2, 100) for number in range(3)]
    played = simulate(spec(), cells, [*cluster(2), device("alone", node="node-1")])
    assert set(finals(played).values()) == {Outcome.OK}
    assert "alone" in played.fleet.released


def test_a_cell_that_needs_more_devices_than_a_node_has_ends_with_its_reason() -> None:
    cells = [cell(0, 1), cell(1, 4)]
    played = simulate(spec(), cells, cluster(3, 2))
    (unplaceable,) = [a for a in played.journal.attempts if a.outcome is Outcome.UNAVAILABLE]
    assert unplaceable.failure is not None
    assert unplaceable.failure.error_message == (
        "4 H100 devices of one node are asked for; no node has more than 3"
    )
    assert unplaceable.failure.error_message in " ".join(played.sweep.summary().troubles)


def test_a_cell_waits_for_the_devices_of_its_node_that_start() -> None:
    second = device("0-1", node="node-0")

    def prepare(fleet: SimulatedFleet, clock: SimulatedClock) -> None:
        fleet._coming.add(second.uuid)
        fleet.join(second, clock.now + 110)

    played = simulate(spec(device_timeout_s=5), [cell(0, 1), cell(1, 2)], cluster(1), prepare=prepare)
    assert set(finals(played).values()) == {Outcome.OK}


def test_a_broken_device_of_a_group_is_the_one_that_is_retired() -> None:
    """The attempt names it: its strikes count, not those of the device that leads."""

    def world(lease: Lease, on: Device) -> Fate:
        return Fate(1.0, Outcome.GPU_FAULT if lease.cell.devices == 2 else Outcome.OK, culprit="0-1")

    played = simulate(spec(max_attempts=1), [cell(number, 2) for number in range(4)], cluster(2), world)
    assert played.fleet.retired == ["0-1"]


def test_a_stopped_sweep_loses_no_attempt_of_a_group() -> None:
    """Each cell that ran is on record once, as cancelled, and runs when the sweep goes on."""
    cells = [cell(number, devices) for number, devices in enumerate((2, 2, 1, 2, 1))]
    rounds = iter(range(1000))
    stopped = simulate(spec(), cells, cluster(5), stop=lambda: "asked to" if next(rounds) == 4 else None)
    before = stopped.journal.attempts
    assert sorted(a.cell.devices for a in before if a.outcome is Outcome.CANCELLED) == [1, 2, 2]
    assert len({a.cell.cell_id for a in before}) == len(before)

    resumed = simulate(spec(), cells, cluster(5), history=before)
    assert set(finals(resumed).values()) == {Outcome.OK}
    assert len(finals(resumed)) == len(cells)
    check_devices(resumed)
