"""The `quality` table: how well a model predicts a long text, along its positions, under each cache policy."""

import math
from dataclasses import dataclass

import polars as pl

from orchestrator.journal.record import SCORE_COLUMNS

_RUN = ("model", "dtype", "mode", "engine", "corpus", "seed", "sinks", "window")


def quality(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Mean negative log-likelihood (nats) per position bucket, over corpora and seeds; of each, the longest run."""
    runs = rows.filter(pl.col("score_num_tokens").list.len() > 0).select(
        *_RUN, *SCORE_COLUMNS, "max_positions", scored=pl.col("score_num_tokens").list.sum()
    )
    longest = runs.sort("scored", descending=True, maintain_order=True).unique(
        list(_RUN), keep="first", maintain_order=True
    )
    buckets = longest.explode(*SCORE_COLUMNS).rename(SCORE_COLUMNS)
    return (
        buckets.group_by("model", "mode", "engine", "position_start", "position_end")
        .agg(
            nll_mean=pl.col("nll_sum").sum() / pl.col("num_tokens").sum(),
            num_tokens=pl.col("num_tokens").sum(),
            max_positions=pl.col("max_positions").max(),
        )
        .sort("model", "engine", "mode", "position_start")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityBoundary:
    """`in_context`, `beyond`: perplexity within the trained context and after it; None where no position is, or the
    context is not known. `departs_at`: the first position from which perplexity exceeds twice `in_context` over
    three buckets together; None: never.
    """

    model: str
    mode: str
    engine: str
    in_context: float | None
    beyond: float | None
    departs_at: int | None
    scored_to: int


def quality_boundaries(table: pl.DataFrame) -> list[QualityBoundary]:
    """One per model, engine and mode of the `quality` table."""
    return [
        _boundary(str(model), str(mode), str(engine), rows.sort("position_start"))
        for (model, engine, mode), rows in table.group_by("model", "engine", "mode", maintain_order=True)
    ]


def _boundary(model: str, mode: str, engine: str, rows: pl.DataFrame) -> QualityBoundary:
    context = rows["max_positions"].max()
    inside, outside = pl.col("position_end") <= context, pl.col("position_start") >= context
    known = _mean_nll(rows.filter(inside)) if context is not None else None
    after = rows.filter(outside) if context is not None else rows.clear()
    departs = None
    if known is not None:
        together = after.with_columns(
            nll=(pl.col("nll_mean") * pl.col("num_tokens")).rolling_sum(3)
            / pl.col("num_tokens").rolling_sum(3),
            begins=pl.col("position_start").shift(2),
        ).filter(pl.col("nll") > known + math.log(2))
        departs = together["begins"].first() if together.height else None
    beyond = _mean_nll(after)
    return QualityBoundary(
        model=model,
        mode=mode,
        engine=engine,
        in_context=None if known is None else math.exp(known),
        beyond=None if beyond is None else math.exp(min(beyond, 700.0)),
        departs_at=departs,  # type: ignore[arg-type]
        scored_to=int(rows["position_end"].max()),  # type: ignore[arg-type]
    )


def _mean_nll(rows: pl.DataFrame) -> float | None:
    if rows.is_empty():
        return None
    mean = rows.select((pl.col("nll_mean") * pl.col("num_tokens")).sum() / pl.col("num_tokens").sum())
    return float(mean.item())
