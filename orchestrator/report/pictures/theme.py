"""How every picture looks, and how it becomes SVG and PNG."""

import re
from typing import Any

import altair as alt
import vl_convert

from orchestrator.report.document import Picture

#: Ink and grid are replaced by the page's own colours where a picture is set into HTML.
INK, SOFT, GRID, PAPER = "#1b1f25", "#59636f", "#d8dee5", "#fffffe"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--paper)"}

_FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"

_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": PAPER,
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT, "titleColor": SOFT, "labelFontSize": 11.5, "titleFontSize": 12, "titleFontWeight": "normal",
        "gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "titlePadding": 8, "labelPadding": 5,
        "tickSize": 4,
    },
    "axisX": {"grid": False},
    "axisY": {"domain": False, "ticks": False},
    "title": {"color": INK, "fontSize": 13.5, "anchor": "start", "fontWeight": 600, "offset": 12},
    "line": {"strokeWidth": 2, "strokeJoin": "round"},
    "text": {"color": INK, "fontSize": 12},
}  # fmt: skip


#: The beginning of a text of a curve's own colour. Soft and inked ones are the page's, greys stand on a colour of their own.
_COLOURED_TEXT = re.compile(
    rf'(?P<before><text (?:(?!>| fill=).)*) fill="(?!{INK}|{SOFT}|{PAPER}|#([0-9a-f]{{2}})\2\2)(?P<colour>#[0-9a-f]{{6}})"',
    re.IGNORECASE,
)

#: Not allowed in XML, and the renderer ends the whole process over one of them.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def picture(name: str, chart: alt.TopLevelMixin, caption: str, alt_text: str) -> Picture:
    """Draw. `name`: the file's, made safe; captions are the caller's own words with raw names in them."""
    specification = _printable(chart.to_dict(validate=False)) | {"config": _CONFIG}
    svg = _with_legible_names(vl_convert.vegalite_to_svg(specification))
    png = vl_convert.svg_to_png(svg, scale=2)
    return Picture(re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-."), svg, png, caption, alt_text)


def for_html(svg: str) -> str:
    """The picture in the page's colours, so that it follows light and dark."""
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f'"{colour}"', f'"{variable}"')
    return _COLOURED_TEXT.sub(r'\g<before> style="fill: color-mix(in srgb, \g<colour> 60%, var(--ink))"', svg)


def _with_legible_names(svg: str) -> str:
    """Coloured text darker than the line of its colour: thin strokes need 4.5 : 1 on paper, thick lines 3 : 1."""
    return _COLOURED_TEXT.sub(lambda found: f'{found["before"]} fill="{_darker(found["colour"])}"', svg)


def _darker(colour: str) -> str:
    channels = ((int(colour[at : at + 2], 16), int(INK[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.75 * own + 0.25 * ink):02x}" for own, ink in channels)


def _printable(value: Any) -> Any:
    """Every string inside with a replacement mark for what no picture can show."""
    match value:
        case str():
            return _NOT_XML.sub("\ufffd", value)
        case dict():
            return {_printable(key): _printable(inner) for key, inner in value.items()}
        case list():
            return [_printable(inner) for inner in value]
        case _:
            return value
