"""Brackets and speeds of several runs, drawn beside each other."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from orchestrator.report.comparing.comparison import HeldRow, brackets
from orchestrator.report.document import Picture
from orchestrator.report.pictures.theme import picture

#: Told apart by people who see colours otherwise, and at 4.5 : 1 on paper.
_COLOURS = ("#0b62a8", "#a8480b", "#4a7a1f", "#7a3f8f")
#: More rows are read in the table.
_MOST_ROWS = 24


def brackets_picture(rows: Sequence[HeldRow]) -> Picture | None:
    """A bar from what passed to what ran out, for each side; of an end that was never met, a mark where it passed."""
    found: list[dict[str, Any]] = [
        {
            "what": row.what,
            "run": label,
            "passed": bracket.last_ok or 0,
            "failed": bracket.first_oom or bracket.last_ok or 0,
            "end": "ran out" if bracket.first_oom else "did not run out",
        }
        for row in rows[:_MOST_ROWS]
        for label, bracket in brackets(row).items()
    ]
    if not found:
        return None
    chart = _rows(pl.DataFrame(found), "failed:Q", "tokens")
    return picture(
        "compare-boundaries",
        chart,
        "Bars: from the longest that passed (point) to the first that ran out of memory. A point alone: it did not run out.",
        "Brackets of the runs, beside each other",
    )


def speeds_picture(rows: Sequence[HeldRow]) -> Picture | None:
    """The median of each side, with its 95 % interval where there is one."""
    found = [
        {
            "what": row.what,
            "run": label,
            "passed": side["tokens_per_s_median"],
            "low": side["tokens_per_s_ci_low"] or side["tokens_per_s_median"],
            "high": side["tokens_per_s_ci_high"] or side["tokens_per_s_median"],
        }
        for row in rows[:_MOST_ROWS]
        for label, side in row.found.items()
        if side["tokens_per_s_median"] is not None
    ]
    if not found:
        return None
    chart = _rows(pl.DataFrame(found), "high:Q", "tokens per second", low="low:Q")
    return picture(
        "compare-speed",
        chart,
        "Points: median tokens per second. Bars: its 95 % interval, where there are repeats.",
        "Speeds of the runs, beside each other",
    )


def _rows(frame: pl.DataFrame, high: str, title: str, low: str = "passed:Q") -> alt.LayerChart:
    runs = frame["run"].unique(maintain_order=True).to_list()
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(runs))]
    colour = alt.Color("run:N", scale=alt.Scale(domain=runs, range=colours), title=None)
    y = alt.Y("what:N", title=None, sort=None, axis=alt.Axis(labelLimit=420))
    beside = alt.YOffset("run:N", sort=runs)
    x = alt.X("passed:Q", title=title, axis=alt.Axis(format=",~f"))
    from_low = x.copy()
    from_low.shorthand = low
    chart = alt.Chart(frame)
    bars = chart.mark_rule(strokeWidth=5, opacity=0.45).encode(
        x=from_low, x2=high, y=y, yOffset=beside, color=colour
    )
    points = chart.mark_point(filled=True, size=44, opacity=1).encode(x=x, y=y, yOffset=beside, color=colour)
    return alt.layer(bars, points).properties(width=420, height=alt.Step(16))
