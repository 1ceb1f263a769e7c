"""Document -> one HTML file that needs no network: styles and pictures inside, light and dark."""

from collections.abc import Sequence
from html import escape
from importlib import resources

from orchestrator.report.document import (
    Attachment,
    Block,
    Bullets,
    Code,
    Document,
    Folded,
    Paragraph,
    Picture,
    Section,
    Span,
    Strong,
    Table,
    Verbatim,
)
from orchestrator.report.pictures.theme import for_html

#: The file names no other resource; the policy says so to the browser as well.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<main>
"""


def to_html(document: Document) -> str:
    css = (resources.files("orchestrator.report") / "report.css").read_text(encoding="utf-8")
    parts = [_HEAD.format(title=escape(document.title), css=css)]
    parts.append(f"<h1>{escape(document.title)}</h1>\n<p class='subtitle'>{escape(document.subtitle)}</p>")
    parts += [f"<p class='warning'>{escape(warning)}</p>" for warning in document.warnings]
    parts += [_section(section) for section in document.sections]
    return "\n".join([*parts, "</main>\n</body>\n</html>\n"])


def _section(section: Section) -> str:
    return "\n".join(
        [
            f"<section>\n<h2>{escape(section.title)}</h2>",
            *(_block(block) for block in section.blocks),
            "</section>",
        ]
    )


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{_spans(block.spans)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{_spans(item)}</li>" for item in block.items) + "</ul>"
        case Table():
            return _table(block)
        case Picture():
            return (
                f"<figure role='img' aria-label='{escape(block.alt)}'>{for_html(block.svg)}"
                f"<figcaption>{escape(block.caption)}</figcaption></figure>"
            )
        case Verbatim():
            return f"<pre>{escape(block.text)}</pre>"
        case Attachment():
            return f"<p>{escape(block.what)}: <code>{escape(block.name)}</code></p>"
        case Folded():
            inner = "\n".join(_block(inner) for inner in block.blocks)
            return f"<details><summary>{escape(block.title)}</summary>\n{inner}\n</details>"


def _spans(spans: Sequence[Span]) -> str:
    return "".join(_span(span) for span in spans)


def _span(span: Span) -> str:
    match span:
        case Strong():
            return f"<strong>{escape(span.text)}</strong>"
        case Code():
            return f"<code>{escape(span.text)}</code>"
        case _:
            return escape(span)


def _table(table: Table) -> str:
    columns = list(table.columns)
    group = columns.index(table.group) if table.group is not None else None
    shown = [index for index in range(len(columns)) if index != group]
    kind = {index: " class='number'" if columns[index] in table.numeric else "" for index in shown}
    lines = ["<tr>" + "".join(f"<th scope='col'{kind[i]}>{escape(columns[i])}</th>" for i in shown) + "</tr>"]
    opened: str | None = None
    for row in table.rows:
        if group is not None and row[group] != opened:
            opened = row[group]
            lines.append(
                f"<tr class='group'><th scope='colgroup' colspan='{len(shown)}'>{escape(opened)}</th></tr>"
            )
        lines.append("<tr>" + "".join(f"<td{kind[i]}>{escape(row[i])}</td>" for i in shown) + "</tr>")
    caption = f"<p class='caption'>{escape(table.caption)}</p>" if table.caption else ""
    body = "\n".join(lines)
    return f"{caption}<div class='scroll'><table>\n{body}\n</table></div>"
