"""A report before it is Markdown or HTML: sections of blocks, all text raw. The renderers escape; nobody else does."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count


@dataclass(frozen=True, slots=True)
class Strong:
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    text: str


Span = str | Strong | Code


@dataclass(frozen=True, slots=True)
class Paragraph:
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Bullets:
    items: Sequence[Sequence[Span]]


@dataclass(frozen=True, slots=True)
class Table:
    """`numeric`: the columns to align right. `group`: the column whose value opens a group of rows, if any.

    `evidence`: of each row, the `Folded.anchor` that shows where it comes from; "" or none: nothing does.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: frozenset[str] = frozenset()
    group: str | None = None
    evidence: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """`svg`: a whole SVG element in `pictures.theme` colours; the file is `plots/NAME.svg`."""

    name: str
    svg: str
    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Foreign text as it came: program output, a stack, generated words."""

    text: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Shown on demand, in HTML and where Markdown is shown as GitHub does. `anchor`: the name by which a row links to
    it: letters, digits and hyphens."""

    title: str
    blocks: Sequence["Block"]
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file beside the report. `name`: its path in the run folder; `what`: what it is, and what opens it."""

    name: str
    data: bytes
    what: str


Block = Paragraph | Bullets | Table | Picture | Verbatim | Folded | Attachment


@dataclass(frozen=True, slots=True)
class Section:
    """`folded`: its blocks are shown on demand in Markdown, of which a reader sees all at once."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """`warnings`: what a reader must know before believing a number."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    warnings: Sequence[str] = field(default=())


def with_files_of_their_own(document: Document) -> Document:
    """`document` with a number behind the name of each file that would overwrite an earlier one: two models may have
    names that differ in nothing but what a file's name cannot hold."""
    taken: set[str] = set()

    def walk(blocks: Sequence[Block]) -> list[Block]:
        return [renamed(block) for block in blocks]

    def renamed(block: Block) -> Block:
        if isinstance(block, Folded):
            return replace(block, blocks=walk(block.blocks))
        if not isinstance(block, Picture | Attachment):
            return block
        stem, dot, suffix = (
            block.name.rpartition(".") if isinstance(block, Attachment) else (block.name, "", "")
        )
        numbered = (f"{stem}-{number}{dot}{suffix}" for number in count(2))
        name = next(name for name in chain([block.name], numbered) if name.lower() not in taken)
        taken.add(name.lower())
        return replace(block, name=name)

    return replace(document, sections=[replace(s, blocks=walk(s.blocks)) for s in document.sections])


def files(document: Document) -> dict[str, bytes]:
    """What lies beside the report, by its path in the run folder: pictures and attachments."""
    found: dict[str, bytes] = {}

    def walk(blocks: Sequence[Block]) -> None:
        for block in blocks:
            if isinstance(block, Picture):
                found[f"plots/{block.name}.svg"] = block.svg.encode()
                found[f"plots/{block.name}.png"] = block.png
            elif isinstance(block, Attachment):
                found[block.name] = block.data
            elif isinstance(block, Folded):
                walk(block.blocks)

    for section in document.sections:
        walk(section.blocks)
    return found
