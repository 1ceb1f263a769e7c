"""The `quality` table: how well a model predicts a long text, along its positions, under each cache policy."""

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
