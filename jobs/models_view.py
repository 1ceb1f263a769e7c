"""`oomline models`: the coverage matrix, for a person, for a script, and for docs/models.md."""

import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.models.coverage import COLUMNS, Coverage, FamilyCoverage, installed_version

#: Characters of a reason on a page.
_LONGEST = 200
#: What a column says, for people.
_HEADINGS = {column: column.replace("kv_law", "KV law exact") for column in COLUMNS}


def models_as_json(coverage: Coverage) -> dict[str, Any]:
    return {
        "transformers": coverage.transformers,
        "installed_transformers": installed_version(),
        "families": [
            {
                "model_type": family.model_type,
                "causal": family.causal,
                "architecture": family.architecture,
                **{column: family.has(column) for column in COLUMNS},
                "reasons": dict(family.reasons),
            }
            for family in coverage.families
        ],
        "not_measured": list(coverage.unmeasured),
    }


def print_models(coverage: Coverage) -> None:
    """A line for each family, and the first thing that it lacks."""
    console = Console()
    table = Table()
    for heading in ("family", *_HEADINGS.values(), "lacks"):
        table.add_column(heading, overflow="fold")
    for family in coverage.families:
        marks = ["yes" if family.has(column) else "–" for column in COLUMNS]
        table.add_row(family.model_type, *marks, Text(next(iter(family.reasons.values()), "")))
    console.print(table)
    console.print(Text(sentence(coverage)))
    if coverage.unmeasured:
        names = ", ".join(coverage.unmeasured)
        console.print(
            Text(f"transformers {installed_version()} has families that were not measured: {names}")
        )


def sentence(coverage: Coverage) -> str:
    """How many families have what."""
    causal = [family for family in coverage.families if family.causal]
    others = [family for family in coverage.families if not family.causal]
    return (
        f"Measured with transformers {coverage.transformers}: of {len(causal)} causal language models {_counts(causal)}; "
        f"of {len(others)} multimodal models, text alone, {_counts(others)}."
    )


def as_markdown(coverage: Coverage) -> str:
    """Families that have the same in one row, then why the others are not there. The generated part of docs/models.md."""
    lines = [
        sentence(coverage),
        "",
        _row(["families", *_HEADINGS.values()]),
        _row(["---"] * (1 + len(COLUMNS))),
    ]
    for pattern, names in _grouped(coverage).items():
        lines.append(_row([_spans(names), *("yes" if has else "–" for has in pattern)]))
    lines += ["", _row(["family", "lacks", "because"]), _row(["---"] * 3)]
    for column, reason, names in _shared_reasons(coverage):
        lines.append(_row([_spans(names), _HEADINGS[column], _escaped(reason)]))
    return "\n".join(lines)


def _counts(families: list[FamilyCoverage]) -> str:
    counts = [sum(family.has(column) for family in families) for column in COLUMNS]
    return ", ".join(f"{_HEADINGS[c]} {count}" for c, count in zip(COLUMNS, counts, strict=True))


def _grouped(coverage: Coverage) -> dict[tuple[bool, ...], list[str]]:
    groups: dict[tuple[bool, ...], list[str]] = {}
    for family in coverage.families:
        groups.setdefault(tuple(family.has(column) for column in COLUMNS), []).append(family.model_type)
    return dict(sorted(groups.items(), reverse=True))


def _shared_reasons(coverage: Coverage) -> list[tuple[str, str, list[str]]]:
    """(column, reason, the families that it is the reason for), with a family's own names left out of it."""
    found: dict[tuple[str, str], list[str]] = {}
    for family in coverage.families:
        for column, reason in family.reasons.items():
            runs = family.has("loads") and family.has("baseline")
            if runs or column == next(iter(family.reasons)):
                told = reason.replace(f"{family.architecture} ", "it ", 1)
                told = told.replace(
                    f": model type {family.model_type} (", ": its model type is not in the list (", 1
                )
                told = textwrap.shorten(told.partition(" (model type ")[0], _LONGEST, placeholder=" …")
                found.setdefault((column, told), []).append(family.model_type)
    order = sorted(found.items(), key=lambda item: (COLUMNS.index(item[0][0]), -len(item[1])))
    return [(column, reason, names) for (column, reason), names in order]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spans(names: list[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("<", "‹").replace("_", "\\_")
