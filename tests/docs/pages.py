"""Markdown pages as their readers see them: links, tables under headings, code."""

import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from tests.docs.repository import ROOT

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@functools.cache
def pages() -> tuple[Path, ...]:
    """Every page of the documentation, relative to the repository's root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return tuple(sorted(path.relative_to(ROOT) for path in found))


@functools.cache
def text(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code. `language`: what stands behind the opening fence, `` where nothing does."""

    language: str
    text: str


def fences(page: Path | str, *languages: str) -> list[Fence]:
    found = [Fence(match["language"], match["text"]) for match in _FENCE.finditer(text(page))]
    return [fence for fence in found if not languages or fence.language in languages]


def prose(page: Path | str) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", text(page))


def links(page: Path | str) -> list[str]:
    """Targets of links and pictures, as written."""
    return [match["target"] for match in _LINK.finditer(prose(page))]


def spans(markdown: str) -> list[str]:
    """What stands between single backticks."""
    return _SPAN.findall(markdown)


def anchors(page: Path | str) -> set[str]:
    """The names by which GitHub links to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: Path | str, heading: str) -> str:
    """From a heading (without its #s) to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {heading!r}"
    return found[1]


def rows(page: Path | str, heading: str, first_column: str) -> list[dict[str, str]]:
    """The table of a section whose first column has this name: a dict per row, by column."""
    lines = section(page, heading).splitlines()
    heads = (at for at, line in enumerate(lines) if line.startswith("|") and _cells(line)[0] == first_column)
    start = next(heads, None)
    assert start is not None, f"{page}, {heading!r}: no table with first column {first_column!r}"
    columns = _cells(lines[start])
    body = []
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        cells = _cells(line)
        assert len(cells) == len(columns), f"{page}, {heading!r}: {line}"
        body.append(dict(zip(columns, cells, strict=True)))
    return body


def names(page: Path | str, heading: str, first_column: str) -> list[str]:
    """The code in the first column of a table, in order."""
    return [name for row in rows(page, heading, first_column) for name in spans(row[first_column])]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
