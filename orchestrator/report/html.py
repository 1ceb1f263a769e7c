"""Document -> one HTML file that needs no network: styles, pictures and a small script inside, light and dark.

Pictures are SVG whose marks carry their values as labels; the script shows the nearest one, sorts and filters tables, and
opens what a link leads to. Without it everything can be read. The content security policy lets no other script run: it
names this one by its hash.
"""

import base64
import hashlib
import re
from collections import Counter
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
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{script_hash}'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<main>
"""


#: Sections from which on a list of contents helps.
_CONTENTS_FROM = 3


def to_html(document: Document) -> str:
    css, script = (_resource(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = [_HEAD.format(title=escape(document.title), css=css, script_hash=f"sha256-{digest}")]
    names = _anchors(document.sections)
    parts.append(f"<h1>{escape(document.title)}</h1>\n<p class='subtitle'>{escape(document.subtitle)}</p>")
    parts += [f"<p class='warning'>{escape(warning)}</p>" for warning in document.warnings]
    if len(names) >= _CONTENTS_FROM:
        parts.append(_contents(document.sections, names))
    parts += [_section(section, name) for section, name in zip(document.sections, names, strict=True)]
    return "\n".join([*parts, f"</main>\n<script>{script}</script>\n</body>\n</html>\n"])


def _resource(name: str) -> str:
    return (resources.files("orchestrator.report") / name).read_text(encoding="utf-8")


def _anchors(sections: Sequence[Section]) -> list[str]:
    """The name of each section, as GitHub makes it from a heading; a number behind one that is taken."""
    taken: Counter[str] = Counter()
    names = []
    for section in sections:
        bare = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        taken[bare] += 1
        names.append(bare if taken[bare] == 1 else f"{bare}-{taken[bare]}")
    return names


def _contents(sections: Sequence[Section], names: Sequence[str]) -> str:
    items = "".join(
        f"<li><a href='#{name}'>{escape(section.title)}</a></li>"
        for section, name in zip(sections, names, strict=True)
    )
    return f"<nav aria-label='Contents'><ol>{items}</ol></nav>"


def _section(section: Section, name: str) -> str:
    return "\n".join(
        [
            f"<section id='{name}'>\n<h2>{escape(section.title)} "
            f"<a class='anchor' href='#{name}' aria-label='Link to this section'>#</a></h2>",
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
                f"<figure role='group' aria-label='{escape(block.alt)}'>{for_html(block.svg)}"
                f"<figcaption>{escape(block.caption)}</figcaption></figure>"
            )
        case Verbatim():
            return f"<pre>{escape(block.text)}</pre>"
        case Attachment():
            return f"<p>{escape(block.what)}: <code>{escape(block.name)}</code></p>"
        case Folded():
            inner = "\n".join(_block(inner) for inner in block.blocks)
            if not block.anchor:
                return f"<details><summary>{escape(block.title)}</summary>\n{inner}\n</details>"
            back = f"<p class='back'><a href='#{block.anchor}-row'>back to the row</a></p>"
            return f"<details id='{block.anchor}'><summary>{escape(block.title)}</summary>\n{inner}\n{back}</details>"


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
    head = "".join(f"<th scope='col'{kind[i]}>{escape(columns[i])}</th>" for i in shown)
    lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    opened: str | None = None
    for place, row in enumerate(table.rows):
        if group is not None and row[group] != opened:
            opened = row[group]
            title = (
                f"<tr class='group'><th scope='colgroup' colspan='{len(shown)}'>{escape(opened)}</th></tr>"
            )
            lines.append(f"</tbody><tbody>{title}" if place else title)
        evidence = table.evidence[place] if place < len(table.evidence) else ""
        cells = "".join(
            f"<td{kind[i]}>{_cell(row[i], evidence if i == shown[0] else '')}</td>" for i in shown
        )
        lines.append(f"<tr id='{evidence}-row'>{cells}</tr>" if evidence else f"<tr>{cells}</tr>")
    caption = f"<p class='caption'>{escape(table.caption)}</p>" if table.caption else ""
    body = "\n".join(lines)
    return f"{caption}<div class='scroll' tabindex='0'><table>\n{body}\n</tbody></table></div>"


def _cell(text: str, evidence: str) -> str:
    """In a box of its own: on a telephone it keeps a long text from becoming one word wide."""
    inner = f"<a href='#{evidence}'>{escape(text)}</a>" if evidence else escape(text)
    return f"<div>{inner}</div>"
