"""Rows of two or more runs held against each other, and what only one of them has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.journal.same_sweep import differences
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.comparing.differences import (
    Difference,
    Quantity,
    boundaries_differ,
    peaks_differ,
    speeds_differ,
)
from orchestrator.report.comparing.sides import (
    Key,
    Side,
    boundary_words,
    cell_words,
    names_of,
    read_sides,
)
from orchestrator.report.sections.cards import longest
from orchestrator.tables.boundary_rows import BoundaryRow


@dataclass(frozen=True, slots=True)
class HeldRow:
    """What at least two sides have. `shown`: by side's label. `differences`: of each other side against the one that
    `against` names: the first that has it on the same kind of device, else `first`.
    """

    quantity: Quantity
    what: str
    shown: Mapping[str, str]
    first: str
    against: Mapping[str, str]
    differences: Mapping[str, Difference]
    found: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnmatchedRow:
    """What only the side `label` has."""

    quantity: Quantity
    what: str
    label: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`setups`: what differs between the sweep files and the machines of each side and the first, a line each."""

    sides: Sequence[Side]
    names: Names
    setups: Sequence[str]
    rows: Sequence[HeldRow]
    unmatched: Sequence[UnmatchedRow]


def read_comparison(folders: Sequence[str | Path]) -> Comparison:
    """Hold the runs in `folders` against the first of them that has a row. Raises `FolderError`, `SchemaTooNew`,
    `StoreError`."""
    sides = read_sides(folders)
    names = names_of(sides)
    rows: list[HeldRow] = []
    unmatched: list[UnmatchedRow] = []

    def hold(
        quantity: Quantity,
        of: Callable[[Side], Mapping[Key, Any]],
        name: Callable[[Names, Any], str],
        show: Callable[[Any], str],
        differ: Callable[[Any, Any], Difference],
    ) -> None:
        for key in dict.fromkeys(key for side in sides for key in of(side)):
            found = {side.label: of(side)[key] for side in sides if key in of(side)}
            first, *others = found
            what = name(names, found[first])
            if not others:
                unmatched.append(UnmatchedRow(quantity, what, first))
                continue
            shown = {
                side.label: show(found[side.label]) if side.label in found else formats.NOTHING
                for side in sides
            }
            against = _against([side for side in sides if side.label in found])
            held = {label: differ(found[against[label]], found[label]) for label in others}
            rows.append(HeldRow(quantity, what, shown, first, against, held, found))

    hold(Quantity.BOUNDARY, lambda side: side.boundaries, boundary_words, longest, boundaries_differ)
    hold(Quantity.SPEED, lambda side: side.rows, cell_words, _speed, speeds_differ)
    hold(Quantity.MEMORY, lambda side: side.rows, cell_words, _peak, peaks_differ)
    return Comparison(sides, names, _setups(sides), rows, unmatched)


def _against(sides: Sequence[Side]) -> dict[str, str]:
    """The label that each but the first of `sides` is held against."""
    first, *others = sides
    of_kind: dict[str, str] = {}
    for side in sides:
        of_kind.setdefault(side.device_kind, side.label)
    return {
        side.label: first.label if of_kind[side.device_kind] == side.label else of_kind[side.device_kind]
        for side in others
    }


def _setups(sides: Sequence[Side]) -> list[str]:
    if not sides:
        return []
    first, *others = sides
    lines: list[str] = []
    for side in others:
        words = (f"in {first.label}", f"in {side.label}")
        if first.spec is not None and side.spec is not None:
            lines += [f"sweep file: {line}" for line in differences(first.spec, side.spec, words)]
        lines += [
            f"{what}: {before} {words[0]}, {now} {words[1]}"
            for what, before, now in _machines(first, side)
            if before != now
        ]
    return lines


def _machines(one: Side, other: Side) -> list[tuple[str, str, str]]:
    told = [("device", one.device_kind, other.device_kind)]
    if one.manifest is None or other.manifest is None:
        return told
    before, now = one.manifest.environment, other.manifest.environment
    told += [
        (attribute.replace("_", " "), str(getattr(before, attribute)), str(getattr(now, attribute)))
        for attribute in ("code_revision", "python", "platform")
    ]
    packages = dict.fromkeys((*before.packages, *now.packages))
    told += [
        (name, before.packages.get(name, "not known"), now.packages.get(name, "not known"))
        for name in packages
    ]
    return [*told, ("allocator", one.allocator or "default", other.allocator or "default")]


def _speed(row: dict[str, Any]) -> str:
    value, low, high = (row[f"tokens_per_s_{name}"] for name in ("median", "ci_low", "ci_high"))
    if value is None:
        return str(row["outcome"]).replace("_", " ")
    return formats.number(value) + ("" if low is None else f" ± {(high - low) / 2:,.1f}")


def _peak(row: dict[str, Any]) -> str:
    return formats.size(row["peak_device_bytes_max"])


def brackets(row: HeldRow) -> dict[str, BoundaryRow]:
    """Of a row of boundaries: each side's."""
    return {label: found for label, found in row.found.items() if isinstance(found, BoundaryRow)}
