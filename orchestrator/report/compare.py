"""Two or more runs side by side, and which differences exceed the noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.explain.breakdown import allocator_moves
from orchestrator.journal.folder import read_run
from orchestrator.journal.manifest import Manifest
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Bullets, Document, Paragraph, Section, Span, Table
from orchestrator.report.markdown import to_markdown
from orchestrator.report.sections.cards import longest
from orchestrator.report.setting import mode_words
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.summary import KEY
from orchestrator.tables.write import derive

#: A peak that differs by less says nothing: the meter's steps and the allocator's blocks are that coarse.
_MEMORY_NOISE = 0.01


@dataclass(frozen=True, slots=True)
class _Side:
    """One run on one kind of device. `rows`: of `summary`, by cell; `boundaries`: by question."""

    label: str
    folder: str
    manifest: Manifest | None
    rows: dict[tuple[Any, ...], dict[str, Any]]
    boundaries: dict[tuple[Any, ...], BoundaryRow]


def compare(folders: Sequence[str | Path]) -> str:
    """Markdown: boundaries, speed and memory of what the runs have in common.

    A boundary differs when the brackets are disjoint, a speed when the 95 % intervals are, a peak when the ranges
    over the repeats are and lie more than 1 % apart. Cells are equal when everything but the device is.
    Raises `FolderError`, `SchemaTooNew`, `StoreError`.
    """
    sides = [side for number, folder in enumerate(folders) for side in _sides(number, str(folder))]
    names = _names(sides)
    boundary, cell = partial(_boundary_words, names), partial(_cell_words, names)
    sections = [
        _about(sides, names),
        _section("Boundaries", sides, lambda side: side.boundaries, boundary, longest, _boundaries_differ),
        _section("Speed (tok/s)", sides, lambda side: side.rows, cell, _speed, _speeds_differ),
        _section("Peak memory", sides, lambda side: side.rows, cell, _peak, _peaks_differ),
    ]
    title = " against ".join(dict.fromkeys(side.label for side in sides)) or "nothing to compare"
    return to_markdown(Document(title, "What the runs have in common, side by side.", sections))


def _sides(number: int, folder: str) -> list[_Side]:
    run = read_run(folder)
    with derive(run) as tables:
        summary, boundaries = tables.summary, tables.boundaries
    kinds = sorted(
        {kind for kind in summary["device_kind"] if kind} | {row.device_kind for row in boundaries}
    )
    name = chr(ord("A") + number % 26)
    key = [column for column in KEY if column != axes.DEVICE_KIND]
    return [
        _Side(
            f"{name} ({kind})" if len(kinds) > 1 else name,
            folder,
            run.manifest,
            {
                tuple(row[column] for column in key): row
                for row in summary.filter(device_kind=kind).iter_rows(named=True)
            },
            {
                (*row.identity.values(), row.phase, row.axis): row
                for row in boundaries
                if row.device_kind == kind
            },
        )
        for kind in kinds
    ]


def _names(sides: Sequence[_Side]) -> Names:
    rows = [
        row
        for side in sides
        for row in (*side.rows.values(), *(r.identity for r in side.boundaries.values()))
    ]
    return Names.of((row["model"], row["dtype"], row["draft"]) for row in rows)


def _about(sides: Sequence[_Side], names: Names) -> Section:
    items: list[Sequence[Span]] = []
    for side in sides:
        kinds = {row["device_kind"] for row in side.rows.values()} | {
            r.device_kind for r in side.boundaries.values()
        }
        made = side.manifest
        code = f", code {made.environment.code_revision}" if made else ""
        torch = f", torch {made.environment.packages.get('torch')}" if made else ""
        allocator = f", {_allocator(side) or 'default allocator'}" if made else ""
        items.append(
            [f"{side.label}: {side.folder}, on {formats.listing(sorted(kinds))}{code}{torch}{allocator}"]
        )
    blocks: list[Block] = [Bullets(items)]
    if len(sides) == 2:
        blocks += _moved_by_allocator(names, *sides)
    return Section("The runs", blocks)


def _moved_by_allocator(names: Names, one: _Side, other: _Side) -> list[Block]:
    expandable = [side for side in (one, other) if "expandable_segments:True" in _allocator(side)]
    if len(expandable) != 1:
        return []
    default = other if expandable[0] is one else one
    items: list[Sequence[Span]] = [
        [f"{_boundary_words(names, row)}: {allocator_moves(row.last_ok, twin.last_ok).replace('`', '')}"]
        for key, row in default.boundaries.items()
        if (twin := expandable[0].boundaries.get(key)) is not None
        and row.last_ok is not None
        and twin.last_ok is not None
        and not (row.censored and twin.censored)
    ]
    return [Bullets(items)] if items else []


def _allocator(side: _Side) -> str:
    return " ".join(side.manifest.environment.allocator.values()) if side.manifest else ""


def _section(
    title: str,
    sides: Sequence[_Side],
    of: Callable[[_Side], dict[tuple[Any, ...], Any]],
    name: Callable[[Any], str],
    show: Callable[[Any], str],
    differ: Callable[[Any, Any], str],
) -> Section:
    """Every row that at least two sides have; each side is held against the first that has it."""
    columns = ["what", *(side.label for side in sides), "beyond the noise"]
    rows = []
    for key in dict.fromkeys(key for side in sides for key in of(side)):
        found = [(side.label, of(side)[key]) for side in sides if key in of(side)]
        if len(found) < 2:
            continue
        by_label = dict(found)
        shown = [show(by_label[side.label]) if side.label in by_label else formats.NOTHING for side in sides]
        (_, first), *others = found
        differences = [
            f"{label}: {differ(first, row)}" if len(sides) > 2 else differ(first, row)
            for label, row in others
        ]
        rows.append([name(first), *shown, "; ".join(differences)])
    if not rows:
        return Section(title, [Paragraph(["Nothing in common."])])
    return Section(title, [Table(columns, rows, "", frozenset(columns[1:-1]))])


def _boundary_words(names: Names, row: BoundaryRow) -> str:
    others = axes.unusual(row.identity, Role.CONDITION, but=["prompt_tokens"])
    about = f"{names.row(dict(row.identity))} {mode_words(names, row.identity)}, {row.engine}"
    return ", ".join(
        [
            f"{about}, {formats.card(row.budget_bytes)}, {row.phase}",
            *others,
        ]
    )


def _boundaries_differ(one: BoundaryRow, other: BoundaryRow) -> str:
    """Disjoint brackets; a side that never ran out ends nowhere."""
    low, high = sorted((one, other), key=lambda row: row.last_ok or 0)
    if low.first_oom is None or (high.last_ok or 0) < low.first_oom:
        return "no"
    if one.last_ok and other.last_ok and not (one.censored or other.censored):
        return f"yes: {(other.last_ok / one.last_ok - 1) * 100:+.1f} %"
    return "yes"


def _cell_words(names: Names, row: dict[str, Any]) -> str:
    return ", ".join(
        [
            f"{names.row(row)} {mode_words(names, row)}, {row['engine']}",
            formats.card(row["budget_bytes"]),
            f"{row['prompt_tokens']:,} + {row['length']:,}",
            *axes.unusual(row, Role.CONDITION, but=["prompt_tokens"]),
        ]
    )


def _speed(row: dict[str, Any]) -> str:
    value, low, high = (row[f"tokens_per_s_{name}"] for name in ("median", "ci_low", "ci_high"))
    if value is None:
        return str(row["outcome"]).replace("_", " ")
    return formats.number(value) + ("" if low is None else f" ± {(high - low) / 2:,.1f}")


def _speeds_differ(one: dict[str, Any], other: dict[str, Any]) -> str:
    if one["tokens_per_s_median"] is None or other["tokens_per_s_median"] is None:
        return "yes: the outcome" if one["outcome"] != other["outcome"] else "no"
    ratio = f"{other['tokens_per_s_median'] / one['tokens_per_s_median']:.2f}×"
    if one["tokens_per_s_ci_low"] is None or other["tokens_per_s_ci_low"] is None:
        return f"cannot tell ({ratio}): one repeat"
    apart = (
        one["tokens_per_s_ci_high"] < other["tokens_per_s_ci_low"]
        or other["tokens_per_s_ci_high"] < one["tokens_per_s_ci_low"]
    )
    return f"yes: {ratio}" if apart else f"no ({ratio})"


def _peak(row: dict[str, Any]) -> str:
    return formats.size(row["peak_device_bytes_max"])


def _peaks_differ(one: dict[str, Any], other: dict[str, Any]) -> str:
    if one["peak_device_bytes_max"] is None or other["peak_device_bytes_max"] is None:
        return "cannot tell"
    low, high = sorted((one, other), key=lambda row: row["peak_device_bytes_max"])
    change = other["peak_device_bytes_max"] / max(one["peak_device_bytes_max"], 1) - 1
    gap = high["peak_device_bytes_min"] - low["peak_device_bytes_max"]
    if gap > _MEMORY_NOISE * low["peak_device_bytes_max"]:
        return f"yes: {change * 100:+.1f} %"
    return "no"
