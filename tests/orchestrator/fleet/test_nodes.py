"""Several nodes: GPUs are slots, a late node is used, a lost one is nobody's fault."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.fleet import AttemptReturned, SlotLost, SlotReady
from tests.orchestrator.fleet.actors import GpuActor, lease
from tests.orchestrator.fleet.test_ray_fleet import count, fleet_of, gather, slots

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@contextmanager
def node(cluster: "Cluster", **resources: int) -> Iterator[Any]:
    before = alive()
    added = cluster.add_node(object_store_memory=80 * 2**20, **resources)
    try:
        yield added
    finally:
        if added in cluster.list_all_nodes():
            cluster.remove_node(added, allow_graceful=True)
        until = time.monotonic() + 60
        while alive() > before:  # a killed raylet reads alive for a while: the next test must not meet it
            assert time.monotonic() < until
            time.sleep(0.2)


def alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def test_every_gpu_is_a_slot_and_cpus_are_left_alone(ray_cluster: "Cluster", ray_driver: str) -> None:
    with node(ray_cluster, num_gpus=2, num_cpus=1), fleet_of(GpuActor, kinds=["H100"]) as fleet:
        ready = slots(gather(fleet, count(SlotReady, 2)))
        assert len({slot.rpartition("/")[0] for slot in ready}) == 1
        assert {slot.rpartition("/")[2] for slot in ready} == {"gpu0", "gpu1"}
        assert fleet.starting() == 0


def test_a_device_of_another_kind_is_let_go(ray_cluster: "Cluster", ray_driver: str) -> None:
    with node(ray_cluster, num_gpus=1, num_cpus=0), fleet_of(GpuActor, kinds=["B200"]) as fleet:
        until = time.monotonic() + 30
        while "only NVIDIA H100" not in (fleet.waiting_for() or ""):
            assert not fleet.poll(0.2)
            assert time.monotonic() < until


def test_a_node_that_joins_late_is_used_and_a_killed_raylet_costs_only_its_lease(
    ray_cluster: "Cluster", ray_driver: str
) -> None:
    with fleet_of(cpu_slots=1, suspect_node_s=300) as fleet:
        [first] = slots(gather(fleet, count(SlotReady, 1)))
        with node(ray_cluster, num_cpus=1) as late:
            [second] = slots(gather(fleet, count(SlotReady, 1)))
            assert second.partition("/")[0] != first.partition("/")[0]
            doomed = lease("sleep:600")
            fleet.submit([second], doomed)
            fleet.submit([first], lease("sleep:1"))
            fleet.poll(0.3)
            late.kill_raylet()
            events = gather(fleet, lambda seen: count(SlotLost, 1)(seen) and count(AttemptReturned, 1)(seen))
            [lost] = [event for event in events if isinstance(event, SlotLost)]
            assert (lost.slot, lost.lease, lost.node_lost) == (second, doomed, True)
        fleet.submit([first], lease("sleep:0"))
        assert Counter(type(e) for e in gather(fleet, count(AttemptReturned, 1)))[SlotLost] == 0
