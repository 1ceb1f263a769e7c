"""Finds the slots of a cluster: one per GPU of every node, CPU slots where the cluster has no GPU. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one actor may run. `slot`: the name that people see, unique in the cluster, such as `node-3/gpu0`."""

    slot: str
    node_id: str
    gpu: bool
    cpu_total_bytes: int | None = None  # a CPU slot's share of its node's memory


def name_nodes(nodes: Iterable[Mapping[str, Any]], known: Mapping[str, str]) -> dict[str, str]:
    """Return a name unique in the cluster by node id, for `known` nodes and new ones. A name once given stays."""
    names = dict(known)
    for node in nodes:
        node_id, name = node["NodeID"], node["NodeName"]
        if node_id not in names:
            longer = (f"{name}~{node_id[:digits]}" for digits in range(4, len(node_id) + 1))
            taken = set(names.values())
            names[node_id] = next(label for label in (name, *longer) if label not in taken)
    return names


def placements(
    nodes: Iterable[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    with_cpu: bool,
    cpu_slots: int | None,
    of_a_cell: int = 1,
) -> dict[str, Placement]:
    """Return the slots of the nodes that are alive, by name. `nodes`: as `ray.nodes()` lists them.

    `with_cpu`: offer CPU slots too; `cpu_slots`: how many per node, default one for every two cores: a cell has one,
    the other serves the driver, the hosts and the next cell, which is made ready meanwhile. `of_a_cell`: as many as one
    cell needs are there where the node has the cores.
    """
    found = {}
    for node in nodes:
        if not node["Alive"]:
            continue
        node_id, resources = node["NodeID"], node["Resources"]
        for index in range(int(resources.get("GPU", 0))):
            placement = Placement(f"{names[node_id]}/gpu{index}", node_id, gpu=True)
            found[placement.slot] = placement
        if with_cpu:
            cores = int(resources.get("CPU", 0))
            count = min(cores, max(of_a_cell, cores // 2) if cpu_slots is None else cpu_slots)
            share = int(resources.get("memory", 0)) // max(count, 1)
            for index in range(count):
                placement = Placement(
                    f"{names[node_id]}/cpu{index}", node_id, gpu=False, cpu_total_bytes=share or None
                )
                found[placement.slot] = placement
    return found


def has_gpu(nodes: Iterable[Mapping[str, Any]]) -> bool:
    return any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in nodes)
