"""The fleet on a real Ray: slots come, run one lease at a time, die, come back."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from orchestrator.fleet import AttemptReturned, FleetEvent, Progressed, SlotLost, SlotReady
from orchestrator.fleet.ray_fleet import RayFleet
from orchestrator.fleet.slot_entry import FleetOptions
from tests.orchestrator.fleet.actors import BrokenActor, ScriptedActor, SlowActor, TwoKindsActor, lease

_serial = iter(range(1000))


@contextmanager
def fleet_of(actor: type = ScriptedActor, **options: object) -> Iterator[RayFleet]:
    asked = {"cpu_slots": 2, "refresh_s": 0.5, "start_backoff_s": 0.1} | options
    fleet = RayFleet(FleetOptions(run_id=f"test-{next(_serial)}", **asked), actor)  # type: ignore[arg-type]
    try:
        yield fleet
    finally:
        fleet.close()


def gather(
    fleet: RayFleet, enough: Callable[[list[FleetEvent]], bool], limit_s: float = 60.0
) -> list[FleetEvent]:
    """Everything the fleet says until `enough`."""
    events: list[FleetEvent] = []
    until = time.monotonic() + limit_s
    while not enough(events):
        assert time.monotonic() < until, f"only {events}"
        events += fleet.poll(0.2)
    return events


def count(kind: type, wanted: int) -> Callable[[list[FleetEvent]], bool]:
    return lambda events: sum(isinstance(event, kind) for event in events) >= wanted


def slots(events: list[FleetEvent]) -> list[str]:
    return [event.slot for event in events if isinstance(event, SlotReady)]


def test_slots_come_up_and_hand_back_attempts(ray_driver: str) -> None:
    with fleet_of() as fleet:
        first, second = sorted(slots(gather(fleet, count(SlotReady, 2))))
        assert first != second
        fleet.submit([first], lease("sleep:0.1", 1))
        fleet.submit([second], lease("sleep:0.2", 2))
        with pytest.raises(ValueError, match="not idle"):
            fleet.submit([first], lease("sleep:0"))
        finished = [e for e in gather(fleet, count(AttemptReturned, 2)) if isinstance(e, AttemptReturned)]
        assert [(e.slot, e.attempt.cell.repeat) for e in finished] == [(first, 1), (second, 2)]
        assert finished[0].attempt.device.total_bytes > 2**28  # half of the node's memory
        assert fleet.waiting_for() is None


def test_the_cpu_slots_of_a_node_warm_up_after_the_first_of_them(ray_driver: str) -> None:
    """They share its cores: the first cell would wait for all of them."""
    with fleet_of(SlowActor) as fleet:
        ready = [event for event in gather(fleet, count(SlotReady, 2)) if isinstance(event, SlotReady)]
        (_, first_ended), (second_began, _) = (map(float, event.device.uuid.split()) for event in ready)
        assert second_began > first_ended


def test_cpu_slots_can_be_fewer_than_cores(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        gather(fleet, count(SlotReady, 1))
        time.sleep(0.6)
        assert not [event for event in fleet.poll(0.6) if isinstance(event, SlotReady)]
        assert fleet.starting() == 0


def test_a_killed_actor_is_lost_with_its_lease_and_comes_back(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        deadly = lease("die")
        fleet.submit([slot], deadly)
        events = gather(fleet, count(SlotReady, 1))
        [lost] = [event for event in events if isinstance(event, SlotLost)]
        assert lost.lease == deadly
        assert "ActorDiedError" in lost.reason
        assert not lost.node_lost
        fleet.submit([slot], lease("sleep:0"))
        gather(fleet, count(AttemptReturned, 1))


def test_an_actor_killed_between_cells_costs_the_next_lease_and_comes_back(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        ours = psutil.Process().children(recursive=True)
        [actor] = [p for p in ours if p.name().startswith("ray::ScriptedA")]
        actor.kill()
        actor.wait(10)
        unlucky = lease("sleep:0")
        fleet.submit([slot], unlucky)
        [lost] = [event for event in gather(fleet, count(SlotReady, 1)) if isinstance(event, SlotLost)]
        assert (lost.lease, lost.node_lost) == (unlucky, False)
        fleet.submit([slot], lease("sleep:0"))
        gather(fleet, count(AttemptReturned, 1))


def test_an_exception_of_the_host_is_a_lost_slot_too(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        fleet.submit([slot], lease("raise"))
        [lost] = [event for event in gather(fleet, count(SlotReady, 1)) if isinstance(event, SlotLost)]
        assert "the host itself is broken" in lost.reason


def test_a_device_that_is_not_clean_gets_a_new_actor_before_its_next_lease(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        fleet.submit([slot], lease("dirty"))
        events = gather(fleet, count(SlotReady, 1))
        assert [type(event) for event in events if not isinstance(event, Progressed)] == [
            AttemptReturned,
            SlotLost,
            SlotReady,
        ]


def test_a_host_that_never_answers_is_ended_at_its_deadline(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1, deadline_grace_s=0.5) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        fleet.submit([slot], lease("sleep:600", time_limit_s=0.5))
        [lost] = [event for event in gather(fleet, count(SlotReady, 1)) if isinstance(event, SlotLost)]
        assert "in time" in lost.reason
        assert lost.lease is not None


def test_a_slot_that_cannot_start_is_given_up(ray_driver: str) -> None:
    with fleet_of(BrokenActor, cpu_slots=1) as fleet:
        events = gather(fleet, count(SlotLost, 3))
        assert [event.gone_for_good for event in events] == [False, False, True]
        assert events[0].reason.startswith("RuntimeError: no driver library; in full: ActorDiedError: ")
        assert "\x1b" not in events[0].reason
        assert fleet.starting() == 0
        assert fleet.waiting_for() == (
            f"no device in the cluster; 1 did not start, {events[0].slot}: RuntimeError: no driver library"
        )


def test_kinds_that_nobody_asked_for_are_left_alone(ray_driver: str) -> None:
    with fleet_of(kinds=["H100"]) as fleet:
        fleet.poll(0.1)
        assert fleet.waiting_for() == "no H100 in the cluster"
        assert fleet.starting() == 0


def test_progress_comes_to_the_driver_while_the_call_is_in_flight(ray_driver: str) -> None:
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        fleet.submit([slot], lease("news"))
        events = gather(fleet, count(AttemptReturned, 1))
        [news] = [event for event in events if isinstance(event, Progressed)]
        assert news.progress.new_tokens == 7
        assert events.index(news) < len(events) - 2


def test_a_head_that_no_longer_answers_does_not_hold_up_what_devices_hand_back(
    ray_driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    with fleet_of(cpu_slots=1) as fleet:
        [slot] = slots(gather(fleet, count(SlotReady, 1)))
        monkeypatch.setattr("ray.nodes", lambda: answer.wait(60) and [])
        time.sleep(1.0)  # it is asked every half second
        fleet.submit([slot], lease("sleep:0"))
        try:
            gather(fleet, count(AttemptReturned, 1), limit_s=20)
        finally:
            answer.set()


def test_a_released_slot_comes_back_when_it_is_recalled_and_a_retired_one_does_not(ray_driver: str) -> None:
    with fleet_of() as fleet:
        first, second = sorted(slots(gather(fleet, count(SlotReady, 2))))
        fleet.release(first)
        fleet.retire(second, "test")
        assert fleet.starting() == 0
        fleet.recall()
        assert slots(gather(fleet, count(SlotReady, 1))) == [first]
        assert fleet.starting() == 0


def test_no_more_devices_than_allowed_are_held_and_one_that_is_gone_makes_room(ray_driver: str) -> None:
    with fleet_of(max_devices=1) as fleet:
        [first] = slots(gather(fleet, count(SlotReady, 1)))
        assert not slots(fleet.poll(0.6))
        assert fleet.starting() == 0
        fleet.release(first)
        assert not slots(fleet.poll(0.6))
        assert fleet.starting() == 0
        fleet.retire(first, "test")
        [second] = slots(gather(fleet, count(SlotReady, 1)))
        assert second != first


def test_a_released_device_makes_room_for_a_kind_that_was_named_and_not_found(ray_driver: str) -> None:
    with fleet_of(TwoKindsActor, kinds=["cpu", "tpu"], max_devices=1) as fleet:
        [first] = slots(gather(fleet, count(SlotReady, 1)))
        fleet.release(first)
        [second] = slots(gather(fleet, count(SlotReady, 1)))
        assert second != first
        fleet.recall()
        assert fleet.starting() == 0


def test_two_slots_run_one_lease_and_hand_back_one_attempt(ray_driver: str) -> None:
    with fleet_of() as fleet:
        pair = sorted(slots(gather(fleet, count(SlotReady, 2))))
        fleet.submit(pair, lease("sleep:0.1"))
        with pytest.raises(ValueError, match="not idle"):
            fleet.submit(pair[1:], lease("sleep:0"))
        events = gather(fleet, count(SlotReady, 2))
        (returned,) = [event for event in events if isinstance(event, AttemptReturned)]
        assert returned.slot == pair[0]
        assert [share.device_uuid for share in returned.attempt.devices] == pair
        assert sorted(slots(events)) == pair


def test_when_one_of_two_slots_is_lost_the_other_ends_and_both_come_back(ray_driver: str) -> None:
    with fleet_of() as fleet:
        pair = sorted(slots(gather(fleet, count(SlotReady, 2))))
        shared = lease("die-1")
        fleet.submit(pair, shared)
        events = gather(fleet, count(SlotReady, 2))
        lost = [event for event in events if isinstance(event, SlotLost)]
        assert [(event.slot, event.lease) for event in lost] == [(pair[1], shared), (pair[0], None)]
        assert pair[1] in lost[1].reason
        assert not [event for event in events if isinstance(event, AttemptReturned)]
        fleet.submit(pair, lease("sleep:0"))
        gather(fleet, count(AttemptReturned, 1))
