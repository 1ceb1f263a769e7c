"""From the nodes of a cluster to the slots it offers."""

from typing import Any

from orchestrator.fleet.slots import has_gpu, name_nodes, placements


def node(node_id: str, name: str = "host", alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": node_id, "NodeName": name, "Alive": alive, "Resources": resources}


def test_nodes_of_one_name_are_told_apart_and_a_name_once_given_stays() -> None:
    first, second, third = node("ffff0001"), node("ffff0002"), node("ffff0003")
    names = name_nodes([first], {})
    assert names == {"ffff0001": "host"}
    names = name_nodes([third, second, first], names)
    assert names["ffff0001"] == "host"
    assert sorted(names.values()) == ["host", "host~ffff", "host~ffff0"]


def test_a_slot_per_gpu_and_cpu_slots_that_share_the_memory() -> None:
    nodes = [
        node("a", "n1", GPU=2.0, CPU=8.0),
        node("b", "n2", CPU=4.0, memory=8000.0),
        node("c", "n3", False, GPU=8.0),
    ]
    names = name_nodes(nodes, {})
    assert has_gpu(nodes)
    assert list(placements(nodes, names, with_cpu=False, cpu_slots=None)) == ["n1/gpu0", "n1/gpu1"]
    found = placements(nodes[1:], names, with_cpu=True, cpu_slots=None)
    assert list(found) == ["n2/cpu0", "n2/cpu1", "n2/cpu2", "n2/cpu3"]
    assert found["n2/cpu0"].cpu_total_bytes == 2000
    fewer = placements(nodes[1:], names, with_cpu=True, cpu_slots=2)
    assert [place.cpu_total_bytes for place in fewer.values()] == [4000, 4000]
    assert len(placements(nodes[1:], names, with_cpu=True, cpu_slots=64)) == 4
    assert not has_gpu(nodes[1:])
