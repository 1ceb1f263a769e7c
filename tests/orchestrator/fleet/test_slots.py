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
    assert list(found) == ["n2/cpu0", "n2/cpu1"], "a core for each, and one for what is around it"
    assert found["n2/cpu0"].cpu_total_bytes == 4000
    for_two = placements([node("d", "n4", CPU=2.0)], {"d": "n4"}, with_cpu=True, cpu_slots=None, of_a_cell=2)
    assert list(for_two) == ["n4/cpu0", "n4/cpu1"]
    one_core = placements([node("d", "n4", CPU=1.0)], {"d": "n4"}, with_cpu=True, cpu_slots=None)
    assert list(one_core) == ["n4/cpu0"]
    more = placements(nodes[1:], names, with_cpu=True, cpu_slots=4)
    assert [place.cpu_total_bytes for place in more.values()] == [2000] * 4
    assert len(placements(nodes[1:], names, with_cpu=True, cpu_slots=64)) == 4
    assert not has_gpu(nodes[1:])
