"""The frontier as a picture: how long a text may be, by how many sequences run at a time, for each card."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.fit.answer import Fit
from orchestrator.fit.questions import Answers
from orchestrator.report.document import Document, Paragraph, Picture, Section, Table
from orchestrator.report.html import to_html
from orchestrator.report.pictures.curves import ChartAxis, Curve, Panel, draw
from orchestrator.report.pictures.theme import picture
from orchestrator.spec_error import SpecError
from workers.modes import MODES

#: One for each card, told apart by people who see colours otherwise too (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c4b8a", "#7f7f7f")


def write_frontier(found: Answers, path: Path) -> None:
    """`path` ends in `.svg`, the picture alone, or `.html`, a page with the numbers. Raises `SpecError`."""
    drawn = frontier(found)
    if drawn is None:
        raise SpecError(f"--out {path}: no mode whose memory grows has an answer: there is no frontier")
    text = drawn.svg if path.suffix == ".svg" else to_html(_page(found, drawn))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--out {path}: {error.strerror}") from error


def frontier(found: Answers) -> Picture | None:
    """None where no text has an end."""
    lines = _lines(found.frontier)
    curves = [
        Curve(name, _COLOURS[index % len(_COLOURS)], dash, x, y)
        for index, (name, dash, x, y) in enumerate(
            (_name(line, several=_modes(found) > 1), _dash(line), *_points(line)) for line in lines
        )
        if x
    ]
    if not curves:
        return None
    panel = Panel(
        title=f"{found.spec.models[0].target}: the longest text that fits",
        x=ChartAxis("sequences at a time"),
        y=ChartAxis("tokens of each sequence", log=True, format=",~s"),
        curves=curves,
        points=True,
    )
    chart = draw(panel)
    return picture("frontier", chart, "Below a line a text fits.", "Longest text by number of sequences")


def _lines(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Of one card and mode each."""
    lines: dict[tuple[str, str], list[Fit]] = {}
    for each in fits:
        lines.setdefault((each.question.card.name, each.question.mode), []).append(each)
    return list(lines.values())


def _points(line: Sequence[Fit]) -> tuple[list[float], list[float]]:
    there = [(each.question.cell.batch_size, each.longest_length) for each in line if each.longest_length]
    return [float(batch) for batch, _ in there], [float(longest or 0) for _, longest in there]


def _name(line: Sequence[Fit], *, several: bool) -> str:
    question = line[0].question
    return f"{question.card.name}, {question.mode}" if several else question.card.name


def _dash(line: Sequence[Fit]) -> tuple[float, float, float] | None:
    return MODES[line[0].question.cell.mode].decoder.dash


def _modes(found: Answers) -> int:
    return len({each.question.mode for each in found.frontier})


def _page(found: Answers, drawn: Picture) -> Document:
    lines = _lines(found.frontier)
    batches = sorted({each.question.cell.batch_size for each in found.frontier})
    rows = []
    for line in lines:
        longest = {each.question.cell.batch_size: each.longest_length for each in line}
        cells = [f"{longest[batch]:,}" if longest.get(batch) else "–" for batch in batches]
        rows.append([line[0].question.card.name, line[0].question.mode, *cells])
    columns = ["card", "mode", *(f"{batch} x" for batch in batches)]
    told = Paragraph(["Tokens of each sequence, by how many sequences run at a time; –: none fits."])
    table = Table(columns, rows, "", frozenset(columns[2:]))
    return Document(
        title=f"How far {found.spec.models[0].target} goes",
        subtitle="From the model's config, without a GPU.",
        sections=[Section("The frontier", [drawn, told, table])],
    )
