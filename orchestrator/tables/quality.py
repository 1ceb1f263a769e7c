"""The `quality` table: how well a model predicts a long text, along its positions, under each cache policy."""

import math
from dataclasses import dataclass

import polars as pl

from orchestrator.journal.record import SCORE_COLUMNS
from workers.modes import MODES

_RUN = ("model", "dtype", "mode", "engine", "corpus", "seed", "sinks", "window")


def quality(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Mean negative log-likelihood (nats) per position bucket, over corpora and seeds; of each, the longest run.

    `scored_to`: the last position scored; `tokens_per_s`: median of the runs. Both are the same in all of a mode's rows.
    """
    runs = rows.filter(pl.col("score_num_tokens").list.len() > 0).select(
        *_RUN, *SCORE_COLUMNS, "max_positions", "tokens_per_s", scored=pl.col("score_num_tokens").list.sum()
    )
    longest = runs.sort("scored", descending=True, maintain_order=True).unique(
        list(_RUN), keep="first", maintain_order=True
    )
    mode = ("model", "mode", "engine")
    buckets = (
        longest.with_columns(
            scored_to=pl.col("scored").max().over(mode),
            tokens_per_s=pl.col("tokens_per_s").median().over(mode),
        )
        .explode(*SCORE_COLUMNS)
        .rename(SCORE_COLUMNS)
    )
    return (
        buckets.group_by(*mode, "position_start", "position_end")
        .agg(
            nll_mean=pl.col("nll_sum").sum() / pl.col("num_tokens").sum(),
            num_tokens=pl.col("num_tokens").sum(),
            max_positions=pl.col("max_positions").max(),
            scored_to=pl.col("scored_to").first(),
            tokens_per_s=pl.col("tokens_per_s").first(),
        )
        .sort("model", "engine", "mode", "position_start")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityBoundary:
    """Perplexities. `in_context`: within the trained context, of the baseline where it was scored (a window that is
    smaller than the context spoils its own), else of the mode itself; `beyond`: of the mode, after the context; None
    where no position is, or the context is not known.

    `departs_at`: the first position from which three buckets together exceed twice `in_context`; None: never. The
    first bucket of a text, read without any context, is no departure.
    """

    model: str
    mode: str
    engine: str
    in_context: float | None
    beyond: float | None
    departs_at: int | None
    scored_to: int
    tokens_per_s: float | None


def quality_boundaries(table: pl.DataFrame) -> list[QualityBoundary]:
    """One per model, engine and mode of the `quality` table, modes in their own order."""
    found = []
    for (model, engine, mode), rows in table.group_by("model", "engine", "mode", maintain_order=True):
        peers = table.filter(model=model, engine=engine)
        baseline = _in_context(peers.filter(mode="baseline"))
        reference = _in_context(rows) if baseline is None else baseline
        found.append(_boundary(str(model), str(mode), str(engine), rows.sort("position_start"), reference))
    return sorted(found, key=lambda row: (row.model, row.engine, list(MODES).index(row.mode)))


def _boundary(
    model: str, mode: str, engine: str, rows: pl.DataFrame, reference: float | None
) -> QualityBoundary:
    departs = None
    if reference is not None:
        together = (pl.col("nll_mean") * pl.col("num_tokens")).rolling_sum(3) / pl.col(
            "num_tokens"
        ).rolling_sum(3)
        begins = pl.col("position_start").shift(2)
        above = rows[1:].select(begins=begins, nll=together).filter(pl.col("nll") > reference + math.log(2))
        departs = above["begins"].to_list()[0] if above.height else None
    beyond = _mean_nll(rows.filter(pl.col("position_start") >= pl.col("max_positions")))
    return QualityBoundary(
        model=model,
        mode=mode,
        engine=engine,
        in_context=None if reference is None else math.exp(reference),
        beyond=None if beyond is None else math.exp(min(beyond, 700.0)),
        departs_at=departs,
        scored_to=rows["scored_to"].item(0),
        tokens_per_s=rows["tokens_per_s"].item(0),
    )


def _in_context(rows: pl.DataFrame) -> float | None:
    return _mean_nll(rows.filter(pl.col("position_end") <= pl.col("max_positions")))


def _mean_nll(rows: pl.DataFrame) -> float | None:
    if rows.is_empty():
        return None
    mean = rows.select((pl.col("nll_mean") * pl.col("num_tokens")).sum() / pl.col("num_tokens").sum())
    return float(mean.item())
