"""Defines the unit of work: a cell on a kind of device. Each cell runs once on every kind that the sweep uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator import axes
from orchestrator.axes import Role
from workers.cell import Cell


class Key(NamedTuple):
    """Identifies a work item, in the journal and in the queue."""

    cell_id: str
    device_kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """`seconds`: predicted. `rank`: lower runs sooner. `urgent`: a retry or a probe, before everything else.

    `avoid`: UUIDs of devices that it failed on. They are used when no other device of the kind is left.
    `alone`: it needs its node to itself, which tells whether it or a neighbour took the host's memory.
    """

    key: Key
    cell: Cell
    seconds: float
    rank: tuple[float, int, int]
    urgent: bool = False
    avoid: frozenset[str] = frozenset()
    alone: bool = False


def rank_plan(cells: Mapping[Key, Cell], seconds: Sequence[float]) -> list[WorkItem]:
    """Longest predicted first; cells that differ only in engine, mode and repeat stay together, repeats outermost.

    So a device's drift (heat, neighbours) falls on all modes alike, and the tail of the sweep is made of short cells.
    """
    longest: dict[tuple[object, ...], float] = {}
    groups = [
        tuple(
            (axes.read(cell, Role.KIND, Role.SETTING, Role.CONDITION, Role.LENGTH) | {"engine": ""}).values()
        )
        for cell in cells.values()
    ]
    for group, predicted in zip(groups, seconds, strict=True):
        longest[group] = max(longest.get(group, 0.0), predicted)
    return [
        WorkItem(key=key, cell=cell, seconds=predicted, rank=(-longest[group], cell.repeat, index))
        for index, ((key, cell), group, predicted) in enumerate(
            zip(cells.items(), groups, seconds, strict=True)
        )
    ]
