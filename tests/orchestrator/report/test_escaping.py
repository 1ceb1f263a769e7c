"""Text from a model, a file or an error must stay text, whatever is in it."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestrator.report.document import (
    Attachment,
    Bullets,
    Code,
    Document,
    Folded,
    Paragraph,
    Picture,
    Section,
    Strong,
    Table,
    Verbatim,
)
from orchestrator.report.html import to_html
from orchestrator.report.markdown import to_markdown
from orchestrator.report.pictures.curves import ChartAxis, Curve, Limit, Panel, draw
from orchestrator.report.pictures.theme import picture

_NASTY = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "|",
        "``",
        "```",
        "~~~",
        "**",
        "__",
        "[x](javascript:alert(1))",
        "![x](y)",
        "<img/onerror=1>",
        "&lt;",
        "-->",
        "]]>",
        "\\|",
        "$$",
        "#",
        "1.",
        "-",
        ">",
        "\n",
        "\r\n",
        "\t",
        "===",
        "---",
        "</pre>",
        "</code>",
        "</table>",
        "'",
        '"',
        "{title}",
        "{{}}",
        "<!--",
        "&#60;",
        "http://x.example",
    ]
)
_TEXT = st.lists(_NASTY | st.text(max_size=8), max_size=6).map(" ".join)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, str, tuple[str, ...]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(("open", tag, tuple(name for name, _ in attributes)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(("close", tag, ()))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    parser.close()
    return parser


def _document(text: str) -> Document:
    """`text` in every place that takes any."""
    inner = [
        Paragraph(["x", text, Strong(f"s{text}"), Code(f"c{text}")]),
        Bullets([[f"b{text}"], ["x", Code(text)]]),
        Table(["k", f"h{text}"], [[f"g{text}", f"v{text}"], ["w", text]], f"t{text}", group="k"),
        Verbatim(text),
        Attachment("name", b"", f"w{text}"),
        Picture("name", "<svg></svg>", b"", f"p{text}", f"a{text}"),
    ]
    return Document(
        f"T{text}", f"u{text}", [Section(f"S{text}", [*inner, Folded(f"f{text}", inner)])], [f"n{text}"]
    )


@given(_TEXT)
def test_html_has_the_same_elements_whatever_the_text(text: str) -> None:
    assert _read(to_html(_document(text))).tags == _read(to_html(_document("plain"))).tags


@given(_TEXT)
def test_html_shows_the_text_itself(text: str) -> None:
    page = _read(to_html(Document("t", "", [Section("s", [Verbatim(text)])])))
    shown = "".join(page.text).replace("\r\n", "\n").replace("\r", "\n")
    assert text.replace("\r\n", "\n").replace("\r", "\n") in shown


@given(_TEXT)
def test_markdown_has_the_same_structure_whatever_the_text(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])

    def structure(source: str) -> list[object]:
        inline = [
            [
                child.type
                for child in token.children or ()
                if child.type not in ("text", "text_special", "softbreak")
            ]
            for token in reader.parse(source)
        ]
        return [[token.type for token in reader.parse(source)], inline]

    assert structure(to_markdown(_document(text))) == structure(to_markdown(_document("plain")))


@settings(max_examples=12)
@given(_TEXT)
def test_a_picture_with_any_name_in_it_is_one_element_tree(text: str) -> None:
    curves = [Curve(text or "x", "#d55e00", None, [0, 1], [1, 2])]
    panel = Panel(f"t{text}", ChartAxis("x"), ChartAxis("y"), curves, [Limit(f"l{text}", y=3)])
    drawn = picture(f"../{text}", draw(panel), "", "")
    tags = {tag for _, tag, _ in _read(drawn.svg).tags}
    assert tags <= {"svg", "g", "path", "text", "line", "rect", "title", "defs", "clippath", "tspan"}
    assert "/" not in drawn.name
    assert not drawn.name.startswith(".")
