"""Document -> Markdown (GitHub's flavour) that can be pasted. Every piece of text is escaped here."""

import html
import re
from collections.abc import Sequence

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

_SPECIAL = re.compile(r"[\\`*\[|~$]|\](?=[(\[:])")
#: An underscore inside a word is literal in Markdown; elsewhere it may emphasise.
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_markdown(document: Document) -> str:
    parts = [f"# {escape(document.title)}", _start(escape(document.subtitle))]
    parts += [f"> **Note:** {escape(warning)}" for warning in document.warnings]
    parts += [_section(section) for section in document.sections]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """On one line, and nothing in it is markup."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\g<0>", line))


def _start(text: str) -> str:
    """What would open a list, a heading or a rule at the start of a line does not."""
    return re.sub(r"^([#+\-=]|\d+[.)](?= |$))", lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", text)


def _section(section: Section) -> str:
    """A folded one keeps its heading, which a link can name."""
    blocks = [_block(block) for block in section.blocks]
    if section.folded:
        blocks = [f"<details><summary>{_contents(section)}</summary>", *blocks, "</details>"]
    return "\n\n".join([f"## {escape(section.title)}", *blocks])


def _contents(section: Section) -> str:
    """What a reader finds in a folded section."""
    counts = [
        (sum(isinstance(block, kind) for block in section.blocks), noun)
        for kind, noun in ((Table, "table"), (Picture, "picture"), (Folded, "case"))
    ]
    return ", ".join(f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count) or "text"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _start(_spans(block.spans))
        case Bullets():
            return "\n".join(f"- {_start(_spans(item))}" for item in block.items)
        case Table():
            return _table(block)
        case Picture():
            return f"![{escape(_round(block.alt))}](plots/{block.name}.svg)\n\n*{escape(block.caption)}*"
        case Verbatim():
            return _fence(block.text)
        case Attachment():
            return f"{escape(block.what)}: {_code(block.name)}"
        case Folded():
            inner = [_block(inner) for inner in block.blocks]
            return "\n\n".join([f"<details><summary>{_in_html(block.title)}</summary>", *inner, "</details>"])


def _in_html(text: str) -> str:
    """Within an HTML element Markdown has no meaning, until a blank line."""
    return html.escape(" ".join(text.split()), quote=False)


def _round(text: str) -> str:
    """An image's description must balance its square brackets."""
    return text.replace("[", "(").replace("]", ")")


def _spans(spans: Sequence[Span]) -> str:
    return "".join(_span(span) for span in spans)


def _span(span: Span) -> str:
    match span:
        case Strong():
            return f"**{escape(span.text)}**"
        case Code():
            return _code(span.text)
        case _:
            lead, tail = (
                " " if span[:1].isspace() else "",
                " " if span[-1:].isspace() and span.strip() else "",
            )
            return f"{lead}{escape(span)}{tail}"


def _code(text: str) -> str:
    """As `<code>`: a code span cannot hold a pipe inside a table, nor a backtick at its ends."""
    return f"<code>{escape(text)}</code>"


def _table(table: Table) -> str:
    """A table of its own for each group, below the group's name: a column that repeats it would squeeze the others."""
    caption = [f"**{escape(table.caption)}**"] if table.caption else []
    if table.group is None:
        return "\n\n".join([*caption, _rows(table, table.columns, table.rows)])
    at = list(table.columns).index(table.group)
    columns = [*table.columns[:at], *table.columns[at + 1 :]]
    groups: dict[str, list[Sequence[str]]] = {}
    for row in table.rows:
        groups.setdefault(row[at], []).append([*row[:at], *row[at + 1 :]])
    parts = [
        part for name, rows in groups.items() for part in (f"*{escape(name)}*", _rows(table, columns, rows))
    ]
    return "\n\n".join([*caption, *parts])


def _rows(table: Table, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "| " + " | ".join(escape(column) for column in columns) + " |"
    rule = "| " + " | ".join("---:" if column in table.numeric else "---" for column in columns) + " |"
    return "\n".join(
        [header, rule, *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows)]
    )


def _fence(text: str) -> str:
    """A fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    clean = "\n".join(text.splitlines())
    return f"{fence}text\n{clean}\n{fence}"
