"""A comparison as a document and as JSON."""

from collections.abc import Sequence
from typing import Any

from orchestrator.explain.breakdown import allocator_moves
from orchestrator.report.comparing.comparison import Comparison, HeldRow, UnmatchedRow
from orchestrator.report.comparing.differences import Quantity
from orchestrator.report.comparing.fail_on import Worse
from orchestrator.report.comparing.pictures import brackets_picture, speeds_picture
from orchestrator.report.comparing.sides import Side, boundary_words
from orchestrator.report.document import (
    Block,
    Bullets,
    Document,
    Folded,
    Paragraph,
    Picture,
    Section,
    Span,
    Table,
)

SCHEMA_VERSION = 1
_TITLES = {
    Quantity.BOUNDARY: "Boundaries",
    Quantity.SPEED: "Speed (tok/s)",
    Quantity.MEMORY: "Peak memory",
}
#: Rows of one side that are listed in the open; more are folded.
_LISTED = 6


def as_document(found: Comparison, worse: Sequence[Worse] = (), *, pictures: bool) -> Document:
    """`worse`: what `--fail-on` found. `pictures`: drawn where there is a place for their files."""
    title = " against ".join(dict.fromkeys(side.label for side in found.sides)) or "nothing to compare"
    sections = [
        *([_failed(worse)] if worse else []),
        _setups(found),
        *(_section(found, quantity, pictures) for quantity in Quantity),
        _runs(found),
    ]
    return Document(title, "What the runs have in common, side by side.", sections)


def as_json(found: Comparison, worse: Sequence[Worse] = ()) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {"label": side.label, "folder": side.folder, "device_kind": side.device_kind}
            for side in found.sides
        ],
        "setup_differences": list(found.setups),
        "rows": [
            {
                "quantity": row.quantity,
                "what": row.what,
                "shown": dict(row.shown),
                "differences": {
                    label: {
                        "against": row.against[label],
                        "differs": difference.differs,
                        "change": difference.change,
                    }
                    for label, difference in row.differences.items()
                },
            }
            for row in found.rows
        ],
        "unmatched": [
            {"quantity": row.quantity, "what": row.what, "only_in": row.label} for row in found.unmatched
        ],
        "worse": [each.words for each in worse],
    }


def _failed(worse: Sequence[Worse]) -> Section:
    return Section("Worse than allowed", [Bullets([[each.words] for each in worse])])


def _setups(found: Comparison) -> Section:
    if not found.setups:
        return Section(
            "What differs in the setup", [Paragraph(["Nothing: the same sweep file, device and versions."])]
        )
    return Section("What differs in the setup", [Bullets([[line] for line in found.setups])])


def _section(found: Comparison, quantity: Quantity, pictures: bool) -> Section:
    rows = [row for row in found.rows if row.quantity is quantity]
    labels = [side.label for side in found.sides]
    blocks: list[Block] = []
    if rows:
        columns = ["what", *labels, "beyond the noise"]
        told = [
            [row.what, *(row.shown[label] for label in labels), _difference(row, len(labels))] for row in rows
        ]
        blocks.append(Table(columns, told, "", frozenset(labels)))
    else:
        blocks.append(Paragraph(["Nothing in common."]))
    if pictures and (picture := _picture(quantity, rows)) is not None:
        blocks.append(picture)
    blocks += _unmatched([row for row in found.unmatched if row.quantity is quantity])
    return Section(_TITLES[quantity], blocks)


def _picture(quantity: Quantity, rows: Sequence[HeldRow]) -> Picture | None:
    if quantity is Quantity.BOUNDARY:
        return brackets_picture(rows)
    return speeds_picture(rows) if quantity is Quantity.SPEED else None


def _difference(row: HeldRow, sides: int) -> str:
    if sides == 2:
        return "; ".join(difference.words for difference in row.differences.values())
    return "; ".join(
        f"{label}{'' if row.against[label] == row.first else f' against {row.against[label]}'}: {difference.words}"
        for label, difference in row.differences.items()
    )


def _unmatched(rows: Sequence[UnmatchedRow]) -> list[Block]:
    """By name: a row that is left out in silence looks like one that is equal."""
    if not rows:
        return []
    listed = Bullets([[f"only in {row.label}: {row.what}"] for row in rows])
    if len(rows) <= _LISTED:
        return [
            Paragraph([f"Not compared, as one run alone has {'them' if len(rows) > 1 else 'it'}:"]),
            listed,
        ]
    return [Folded(f"{len(rows)} rows are not compared: one run alone has them", [listed])]


def _runs(found: Comparison) -> Section:
    items: list[Sequence[Span]] = []
    for side in found.sides:
        made = side.manifest
        code = f", code {made.environment.code_revision}" if made else ""
        torch = f", torch {made.environment.packages.get('torch')}" if made else ""
        allocator = f", {side.allocator or 'default allocator'}" if made else ""
        items.append(
            [f"{side.label}: {side.folder}, on {side.device_kind or 'no device'}{code}{torch}{allocator}"]
        )
    blocks: list[Block] = [Bullets(items)]
    if len(found.sides) == 2:
        blocks += _moved_by_allocator(found, *found.sides)
    return Section("The runs", blocks)


def _moved_by_allocator(found: Comparison, one: Side, other: Side) -> list[Block]:
    expandable = [side for side in (one, other) if "expandable_segments:True" in side.allocator]
    if len(expandable) != 1:
        return []
    default = other if expandable[0] is one else one
    items: list[Sequence[Span]] = [
        [f"{boundary_words(found.names, row)}: {allocator_moves(row.last_ok, twin.last_ok)}"]
        for key, row in default.boundaries.items()
        if (twin := expandable[0].boundaries.get(key)) is not None
        and row.last_ok is not None
        and twin.last_ok is not None
        and not (row.censored and twin.censored)
    ]
    return [Bullets(items)] if items else []
