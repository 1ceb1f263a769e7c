"""The `retrieval` and `effective_length` tables: what a model still finds, by length and depth, under each cache policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator import axes
from orchestrator.axes import VARIANT, Role
from orchestrator.journal.record import RESULT_COLUMNS
from workers.modes import RETRIEVE, mode_rank
from workers.retrieval.tasks import TASKS

#: What has to be equal before two modes are compared. A cell's prompt is its length.
PEERS = tuple(name for name in axes.same_tokens(Role.SETTING, Role.CONDITION) if name != "prompt_tokens")
#: One heat map. Texts (corpora and seeds) are counted together.
KEY = (*PEERS, *axes.names(*VARIANT))
_TEXT = ("corpus", "seed")
#: Share of the accuracy at the shortest length at which a length still counts (arXiv:2404.06654 has 85 % as a fixed bound).
SHARE = 0.85
#: Of a normal distribution: 95 % of it lie within so many standard deviations.
_Z = 1.959963984540054
_COLUMNS = RESULT_COLUMNS[RETRIEVE.name]
_CHANCES = {task.name: task.chance for task in TASKS.values()}
_FIRST = (
    "model",
    "mode",
    "engine",
    "task",
    "length",
    "depth",
    "correct",
    "samples",
    "accuracy",
    "ci_low",
    "ci_high",
    "chance",
)


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927): within 0 and 1, and never empty."""
    if samples == 0:
        return 0.0, 1.0
    share, z2 = correct / samples, _Z**2
    middle = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = _Z / (1 + z2 / samples) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    # At both ends the bound is the share itself, which rounding would miss.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == samples else middle + half)


def retrieval(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Right answers by length and depth; depth null for a task that hides its needles anywhere.

    Each question counts once. A repeat asks the same ones, and so does the same cell in another budget or on another kind
    of device: of those the first counts.
    """
    runs = (
        rows.filter(pl.col("retrieve_correct").list.len() > 0)
        .select(*KEY, "length", "max_positions", *_TEXT, *_COLUMNS)
        .unique([*KEY, "length", *_TEXT], keep="first", maintain_order=True)
    )
    counted = (
        runs.explode(*_COLUMNS)
        .rename(_COLUMNS)
        .group_by(*KEY, "length", "depth")
        .agg(
            correct=pl.col("correct").sum().cast(pl.Int64),
            samples=pl.len().cast(pl.Int64),
            needle_at=pl.col("needle_at").median().cast(pl.Int64),
            chat=pl.col("chat").first(),
            example_expected=_example("expected"),
            example_answer=_example("answer"),
            max_positions=pl.col("max_positions").max(),
        )
        .with_columns(chance=pl.col("task").replace_strict(_CHANCES, return_dtype=pl.Float64, default=None))
    )
    return (
        counted.with_columns(accuracy=pl.col("correct") / pl.col("samples"), **_interval())
        .sort("model", "engine", "mode", *KEY, "length", "depth", nulls_last=True)
        .select(*_FIRST, pl.exclude(*_FIRST))
    )


def _example(column: str) -> pl.Expr:
    """Of the first question that was answered wrong, else of the first."""
    return pl.col(column).sort_by("correct", maintain_order=True).first()


def _interval() -> dict[str, pl.Expr]:
    """The columns `ci_low` and `ci_high` from `correct` and `samples`."""
    both = pl.struct("correct", "samples").map_batches(
        lambda rows: pl.Series(
            [wilson(row["correct"], row["samples"]) for row in rows], dtype=pl.Array(pl.Float64, 2)
        ),
        return_dtype=pl.Array(pl.Float64, 2),
    )
    return {"ci_low": both.arr.get(0), "ci_high": both.arr.get(1)}


@dataclass(frozen=True, slots=True)
class Found:
    """Right answers at one length, all depths together."""

    length: int
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


@dataclass(frozen=True, slots=True)
class EffectiveLength:
    """`tokens`: the last length up to which accuracy stays at or above `threshold`; None where nothing was found at the
    shortest. `first_below`: the length after it; None: never below, the tokens are then a lower bound (`censored`).
    """

    tokens: int | None
    threshold: float
    first_below: int | None

    @property
    def censored(self) -> bool:
        return self.tokens is not None and self.first_below is None


def effective(points: Sequence[Found]) -> EffectiveLength:
    """Of one mode, `points` at its lengths in any order, at least one. A later recovery does not count."""
    points = sorted(points, key=lambda point: point.length)
    threshold = SHARE * points[0].accuracy
    if threshold == 0:
        return EffectiveLength(None, threshold, points[0].length)
    last = points[0].length
    for point in points[1:]:
        if point.accuracy < threshold:
            return EffectiveLength(last, threshold, point.length)
        last = point.length
    return EffectiveLength(last, threshold, None)


def effective_length(table: pl.DataFrame) -> pl.DataFrame:
    """One row per heat map of the `retrieval` table, modes in their own order.

    `threshold`: accuracy. `shortest`, `longest`: lengths that were tried. `accuracy` with its interval: at the effective
    length, all depths together.
    """
    by_length = table.group_by(*KEY, "length", maintain_order=True).agg(
        pl.col("correct").sum(), pl.col("samples").sum(), pl.col("max_positions").max()
    )
    found = []
    for values, rows in by_length.group_by(KEY, maintain_order=True):
        points = [Found(*row) for row in rows.select("length", "correct", "samples").iter_rows()]
        told = effective(points)
        at = next((point for point in points if point.length == told.tokens), None)
        low, high = (None, None) if at is None else wilson(at.correct, at.samples)
        found.append(
            dict(zip(KEY, values, strict=True))
            | {"effective_length": told.tokens, "threshold": told.threshold, "censored": told.censored}
            | {"first_below": told.first_below, "accuracy": None if at is None else at.accuracy}
            | {"ci_low": low, "ci_high": high, "max_positions": rows["max_positions"].max()}
            | {"shortest": rows["length"].min(), "longest": rows["length"].max()}
        )
    first = ("model", "mode", "engine", "task", "effective_length", "threshold", "censored")
    schema = {name: table.schema[name] for name in KEY} | _EFFECTIVE
    found.sort(key=lambda row: (row["model"], row["engine"], row["task"], mode_rank(row["mode"])))
    return pl.DataFrame(found, schema=schema).select(*first, pl.exclude(*first))


_EFFECTIVE = {
    "effective_length": pl.Int64, "threshold": pl.Float64, "censored": pl.Boolean, "first_below": pl.Int64,
    "accuracy": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64, "max_positions": pl.Int64,
    "shortest": pl.Int64, "longest": pl.Int64,
}  # fmt: skip
