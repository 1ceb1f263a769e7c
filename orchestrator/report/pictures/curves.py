"""Curves with their names at their ends, limits as lines, and a cross where memory ran out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import altair as alt
import polars as pl

from orchestrator.report.pictures.theme import PAPER, SOFT
from workers.modes import Dash

#: Points of a curve that tell their value, beside the first.
_VALUES = 60
_GAP_PX = 15.0  # between the names of two curves


@dataclass(frozen=True, slots=True)
class Curve:
    """`x`, `y`: the points, in the axes' units. `low`, `high`: an interval at each point, if there is one.

    `out_of_memory`: the last point is where memory ran out. `dash`: None: drawn through.
    """

    name: str
    colour: str
    dash: Dash | None
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """`unit`: what a value is said to be of; default: the title."""

    title: str
    log: bool = False
    format: str = ",~f"
    unit: str = ""

    def told(self, value: float, digits: int) -> str:
        return f"{value:,.{digits}g} {self.unit or self.title}"


@dataclass(frozen=True, slots=True)
class Limit:
    """A line across the picture: at `y` (a budget), or at `x` (a trained context)."""

    name: str
    y: float | None = None
    x: float | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A thick bar along the x axis' direction at `y`, from `low` to `high`: a bracket."""

    colour: str
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A ring of its own: a prediction. `told`: what the page says of it."""

    colour: str
    x: float
    y: float
    told: str


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    x: ChartAxis
    y: ChartAxis
    curves: Sequence[Curve]
    limits: Sequence[Limit] = field(default=())
    stretches: Sequence[Stretch] = field(default=())
    marks: Sequence[Mark] = field(default=())
    points: bool = False
    steps: bool = False  # a value holds until the next one
    width: int = 700
    height: int = 320


def draw(panel: Panel) -> alt.LayerChart:
    curves = [curve for curve in panel.curves if curve.x]
    scale = _Scale.of(panel, curves)
    x = alt.X("x:Q", title=panel.x.title, scale=alt.Scale(domain=scale.x, nice=False))
    x = x.axis(format=panel.x.format, tickCount=max(3, panel.width // 100))
    y = alt.Y(
        "y:Q",
        title=panel.y.title,
        scale=alt.Scale(domain=scale.y, nice=False, type="log" if panel.y.log else "linear"),
    )
    ticks = {"values": _decades(*scale.y)} if panel.y.log else {"tickCount": 6}
    y = y.axis(format=panel.y.format, **ticks)
    layers = [
        *_limits(panel, scale, x, y),
        *_lines(panel, curves, x, y),
        *_stretches(panel, x, y),
        *_marks(panel, x, y),
        *_names(panel, curves, scale, x, y),
        *_values(panel, curves, x, y),
    ]
    return alt.layer(*layers, title=panel.title).properties(width=panel.width, height=panel.height)


@dataclass(frozen=True, slots=True)
class _Scale:
    x: list[float]
    y: list[float]

    @classmethod
    def of(cls, panel: Panel, curves: Sequence[Curve]) -> "_Scale":
        xs = [value for curve in curves for value in curve.x]
        ys = [value for curve in curves for value in (*curve.y, *curve.high) if value is not None]
        xs += [mark.x for mark in panel.marks]
        ys += [mark.y for mark in panel.marks]
        xs += [limit.x for limit in panel.limits if limit.x is not None]
        ys += [limit.y for limit in panel.limits if limit.y is not None]
        above = 1.0 + 0.07 * (1 + sum(curve.out_of_memory for curve in curves))
        low, high = min([0.0, *xs]), max([0.0, *xs]) * 1.01
        y = _log_domain(min(ys), max(ys)) if panel.y.log else [0.0, max([0.0, *ys]) * above or 1.0]
        return cls([low, high if high > low else 1.0], y)


def _log_domain(low: float, high: float) -> list[float]:
    """A little more than what is drawn, and so much that two ticks are in it."""
    low, high = low / 1.25, high * 1.25
    if len(_decades(low, high)) >= 2:
        return [low, high]
    ticks = _decades(low / 10, high * 10)
    return [max(tick for tick in ticks if tick <= low), min(tick for tick in ticks if tick >= high)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between the two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for digit in (1, 2, 5) if low <= (tick := digit * 10.0**power) <= high]


def _limits(panel: Panel, scale: _Scale, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    layers = []
    for limit in panel.limits:
        across = limit.y is not None
        frame = pl.DataFrame(
            {"x": [limit.x or scale.x[0]], "y": [limit.y or scale.y[1]], "name": [limit.name]}
        )
        rule = alt.Chart(frame).mark_rule(color=SOFT, strokeDash=[2, 3], strokeWidth=1.2)
        layers.append(rule.encode(y=y) if across else rule.encode(x=x))
        place = {"dx": 6, "dy": -7, "baseline": "bottom"} if across else {"dx": 6, "dy": 8, "baseline": "top"}
        text = alt.Chart(frame).mark_text(align="left", color=SOFT, fontSize=11.5, **place)
        layers.append(text.encode(x=x, y=y, text="name:N"))
    return layers


def _stretches(panel: Panel, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    layers = []
    for bar in panel.stretches:
        frame = pl.DataFrame({"x": [float(bar.low)], "to": [float(bar.high)], "y": [float(bar.y)]})
        thick = alt.Chart(frame).mark_rule(color=bar.colour, strokeWidth=9, opacity=0.45)
        layers.append(thick.encode(x=x, x2="to:Q", y=y))
    return layers


def _marks(panel: Panel, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    layers = []
    for mark in panel.marks:
        frame = pl.DataFrame({"x": [float(mark.x)], "y": [float(mark.y)], "told": [mark.told]})
        ring = alt.Chart(frame).mark_point(
            color=mark.colour, filled=False, size=110, strokeWidth=1.5, opacity=1
        )
        layers.append(ring.encode(x=x, y=y, description="told:N"))
    return layers


def _lines(panel: Panel, curves: Sequence[Curve], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    layers = []
    for curve in curves:
        colour = curve.colour
        columns: dict[str, list[float | None]] = {
            "x": [float(v) for v in curve.x],
            "y": [float(v) for v in curve.y],
        }
        if curve.low:
            columns |= {"low": list(curve.low), "high": list(curve.high)}
        frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64))
        # A line without dashes has no dash pattern: one of [1, 0] costs the rasteriser a stroke per pixel.
        dashed = (
            {} if curve.dash is None else {"strokeDash": curve.dash[:2], "strokeDashOffset": curve.dash[2]}
        )
        shape = "step-after" if panel.steps else "linear"
        layers.append(
            alt.Chart(frame)
            .mark_line(color=colour, interpolate=shape, **dashed)
            .encode(x=x, y=y, order="x:Q")
        )
        if curve.low and frame.drop_nulls().height:
            whole = frame.drop_nulls()
            bar = alt.Chart(whole).mark_rule(color=colour, strokeWidth=1.2, opacity=0.7)
            from_low = y.copy()
            from_low.shorthand = "low:Q"
            layers.append(bar.encode(x=x, y=from_low, y2="high:Q"))
        if panel.points:
            layers.append(
                alt.Chart(frame).mark_point(color=colour, filled=True, size=34, opacity=1).encode(x=x, y=y)
            )
        if curve.out_of_memory:
            end = frame.tail(1)
            cross = alt.Chart(end).mark_text(text="✕", color=colour, fontSize=17, fontWeight="bold")
            layers.append(cross.encode(x=x, y=y))
    return layers


def _values(panel: Panel, curves: Sequence[Curve], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Points that are not seen, each with its value as its label: what the page shows of the nearest one."""
    layers = []
    for curve in curves:
        places = sorted({round(place * (len(curve.x) - 1) / _VALUES) for place in range(_VALUES + 1)})
        told = [
            f"{curve.name}: {panel.y.told(curve.y[at], 4)} at {panel.x.told(curve.x[at], 6)}" for at in places
        ]
        frame = pl.DataFrame(
            {
                "x": [float(curve.x[at]) for at in places],
                "y": [float(curve.y[at]) for at in places],
                "told": told,
            }
        )
        point = alt.Chart(frame).mark_point(color=curve.colour, filled=True, size=70, opacity=0)
        layers.append(point.encode(x=x, y=y, description="told:N"))
    return layers


def _names(panel: Panel, curves: Sequence[Curve], scale: _Scale, x: alt.X, y: alt.Y) -> list[alt.LayerChart]:
    """Beside the last point; above the cross where memory ran out. Names give way to each other upwards."""
    layers = []
    survivors = [curve for curve in curves if not curve.out_of_memory]
    for curve, place in zip(survivors, _spread([c.y[-1] for c in survivors], panel, scale), strict=True):
        layers.append(_name(curve, curve.x[-1], place, x, y, align="left", dx=9))
    ceiling = max((limit.y for limit in panel.limits if limit.y is not None), default=0.0)
    fallen = sorted((curve for curve in curves if curve.out_of_memory), key=lambda curve: -curve.x[-1])
    for step, curve in enumerate(fallen):
        top = max(curve.y[-1], ceiling) + (step + 0.75) * _GAP_PX * (scale.y[1] - scale.y[0]) / panel.height
        align = "right" if curve.x[-1] > 0.6 * scale.x[1] else "left"
        layers.append(_name(curve, curve.x[-1], top, x, y, align=align, dx=-8 if align == "right" else 8))
    return layers


def _name(
    curve: Curve, at: float, height: float, x: alt.X, y: alt.Y, *, align: str, dx: int
) -> alt.LayerChart:
    """With a margin of paper around it, so that it stays legible across other curves."""
    frame = pl.DataFrame({"x": [float(at)], "y": [float(height)], "name": [curve.name]})
    style = {"align": align, "baseline": "middle", "dx": dx, "fontWeight": 600}
    chart = alt.Chart(frame).encode(x=x, y=y, text="name:N")
    margin = chart.mark_text(color=PAPER, stroke=PAPER, strokeWidth=4, strokeJoin="round", **style)
    return alt.layer(margin, chart.mark_text(color=curve.colour, **style))


def _spread(values: Sequence[float], panel: Panel, scale: _Scale) -> list[float]:
    """The values, moved up as little as it takes to keep names apart."""
    log = panel.y.log
    low, high = (math.log(edge) if log else edge for edge in scale.y)
    gap = _GAP_PX * (high - low) / panel.height
    placed: dict[int, float] = {}
    floor = -math.inf
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        value = math.log(values[index]) if log else values[index]
        floor = placed[index] = max(value, floor + gap)
    return [math.exp(placed[index]) if log else placed[index] for index in range(len(values))]
