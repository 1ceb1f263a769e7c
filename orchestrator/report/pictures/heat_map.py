"""Accuracy by length and depth: a map for each mode, with what its cache keeps and the trained context drawn in."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from orchestrator.report.pictures.theme import INK

_CELL_PX, _HEIGHT_PX, _COLUMNS = 58, 190, 3
#: From "never" to "always".
_COLOURS = ["#fbe3d6", "#0a5c99"]
#: From this accuracy on white is easier to read on its colour than black; both are 4.5 : 1 there.
_DARK = 0.78


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`rows`: length, depth (null: anywhere), accuracy. `window`: last tokens that a query sees, None: all. `context`:
    positions that the model was trained on, None: not known.
    """

    title: str
    rows: pl.DataFrame
    window: int | None
    context: int | None


def draw_heat_maps(maps: Sequence[HeatMap]) -> alt.ConcatChart:
    """Return the maps side by side, `_COLUMNS` in a row; four as two and two."""
    return alt.concat(*map(_draw, maps), columns=2 if len(maps) == 4 else _COLUMNS)


def _draw(one: HeatMap) -> alt.LayerChart:
    depths = sorted(one.rows["depth"].drop_nulls().unique())
    half = 0.5 / max(1, len(depths) - 1) if depths else 0.5
    cells = one.rows.with_columns(
        depth=pl.col("depth").fill_null(0.5),
        said=(pl.col("accuracy") * 100).round(0).cast(pl.Int64).cast(pl.String),
        is_dark=pl.col("accuracy") >= _DARK,
        told=pl.coalesce(
            pl.format(
                "{} tokens, depth {} %: {} of {}",
                *("length", (pl.col("depth") * 100).round(0).cast(pl.Int64), "correct", "samples"),
            ),
            pl.format("{} tokens: {} of {}", "length", "correct", "samples"),
        ),
    ).with_columns(top=pl.col("depth") - half, bottom=pl.col("depth") + half)
    x = alt.X("length:O", title="length (tokens)", axis=alt.Axis(format=",d", labelAngle=0))
    scale = alt.Scale(domain=[-half if depths else 0, 1 + half if depths else 1], reverse=True, nice=False)
    axis = alt.Axis(values=depths, format="~%", grid=False)
    y = alt.Y("top:Q", title="depth of the needle" if depths else "needles anywhere", scale=scale, axis=axis)
    shades = alt.Scale(domain=[0, 1], range=_COLOURS, interpolate="rgb")
    colour = alt.Color("accuracy:Q", scale=shades, legend=None)
    shares = alt.Chart(cells).mark_rect().encode(x=x, y=y, y2="bottom:Q", color=colour, description="told:N")
    light_or_dark = alt.condition("datum.is_dark", alt.value("#ffffff"), alt.value("#000000"))
    middle = alt.Y("depth:Q", scale=scale)
    text = alt.Chart(cells).encode(x=x, y=middle, text="said:N")
    words = text.mark_text(fontSize=11.5).encode(color=light_or_dark)
    # The cell's colour around each number, so that no tick strikes it through.
    margin = text.mark_text(fontSize=11.5, fill="transparent", strokeWidth=6, strokeJoin="round").encode(
        stroke=alt.Stroke("accuracy:Q", scale=shades, legend=None)
    )
    layers = [shares, *_window(one, scale, x), *_context(one), margin, words]
    lengths = one.rows["length"].n_unique()
    width = _CELL_PX * max(3, lengths)
    return alt.layer(*layers, title=one.title).properties(width=width, height=_HEIGHT_PX)


def _window(one: HeatMap, scale: alt.Scale, x: alt.X) -> list[alt.Chart]:
    """At each length, the depth above which a needle has left the window."""
    if one.window is None or one.rows["depth"].null_count():
        return []
    lengths = [length for length in one.rows["length"].unique().sort() if length > one.window]
    edges = pl.DataFrame(
        {"length": lengths, "edge": [1 - one.window / length for length in lengths]},
        schema={"length": pl.Int64, "edge": pl.Float64},
    )
    tick = alt.Chart(edges).mark_tick(orient="horizontal", color=INK, thickness=2.5, size=_CELL_PX - 4)
    return [tick.encode(x=x, y=alt.Y("edge:Q", scale=scale))]


def _context(one: HeatMap) -> list[alt.Chart]:
    """Before the first length that the model was not trained on."""
    beyond = [length for length in one.rows["length"].unique().sort() if length > (one.context or length)]
    if not beyond:
        return []
    at = pl.DataFrame({"length": beyond[:1]})
    rule = alt.Chart(at).mark_rule(color=INK, strokeDash=[3, 3], strokeWidth=1.6)
    return [rule.encode(x=alt.X("length:O", bandPosition=0))]
