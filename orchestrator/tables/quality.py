"""The `quality` table: how well a model predicts a long text, along its positions, under each cache policy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import polars as pl

from orchestrator import axes
from orchestrator.axes import VARIANT, Role
from orchestrator.journal.record import RESULT_COLUMNS
from orchestrator.tables.baseline import is_baseline
from workers.modes import SCORE, mode_rank

#: What has to be equal before two policies' perplexities are compared: a budget, say, changes no token.
PEERS = axes.same_tokens(Role.SETTING, Role.CONDITION)
#: One line of the table's curves: texts (corpora and seeds) are averaged.
KEY = (*PEERS, *axes.names(*VARIANT))
_TEXT = ("corpus", "seed")
#: The journal's columns of a run's buckets.
_COLUMNS = RESULT_COLUMNS[SCORE.name]
_FIRST = ("model", "mode", "engine", "position_start", "position_end", "nll_mean", "num_tokens")


def quality(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Mean negative log-likelihood (nats) per position bucket, over corpora and seeds; of each, the longest run.

    `scored_to`: the last position scored; `tokens_per_s`: median of the runs. Both are the same in all rows of a key.
    """
    runs = rows.filter(pl.col("score_num_tokens").list.len() > 0).select(
        *KEY,
        *_TEXT,
        *_COLUMNS,
        "max_positions",
        "tokens_per_s",
        scored=pl.col("score_num_tokens").list.sum(),
    )
    longest = runs.sort("scored", descending=True, maintain_order=True).unique(
        [*KEY, *_TEXT], keep="first", maintain_order=True
    )
    buckets = (
        longest.with_columns(
            scored_to=pl.col("scored").max().over(KEY),
            tokens_per_s=pl.col("tokens_per_s").median().over(KEY),
        )
        .explode(*_COLUMNS)
        .rename(_COLUMNS)
    )
    return (
        buckets.group_by(*KEY, "position_start", "position_end")
        .agg(
            nll_mean=pl.col("nll_sum").sum() / pl.col("num_tokens").sum(),
            num_tokens=pl.col("num_tokens").sum(),
            max_positions=pl.col("max_positions").max(),
            scored_to=pl.col("scored_to").first(),
            tokens_per_s=pl.col("tokens_per_s").first(),
        )
        .sort("model", "engine", "mode", *KEY, "position_start", nulls_last=True)
        .select(*_FIRST, pl.exclude(*_FIRST))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityBoundary:
    """Perplexities. `in_context`: within the trained context, of the baseline where it was scored (a window that is
    smaller than the context spoils its own), else of the mode itself; `beyond`: of the mode, after the context; None
    where no position is, or the context is not known.

    `departs_at`: the first position from which three buckets together exceed twice `in_context`; None: never. The
    first bucket of a text, read without any context, is no departure. `identity`: the values of `KEY`.
    """

    identity: Mapping[str, Any]
    in_context: float | None
    beyond: float | None
    departs_at: int | None
    scored_to: int
    tokens_per_s: float | None

    @property
    def model(self) -> str:
        return cast(str, self.identity["model"])

    @property
    def mode(self) -> str:
        return cast(str, self.identity["mode"])

    @property
    def words(self) -> str:
        """The mode, and what is unusual about how its keys and values are kept."""
        return " · ".join([self.mode, *axes.unusual(self.identity, Role.POLICY)])

    @property
    def engine(self) -> str:
        return cast(str, self.identity["engine"])

    @property
    def others(self) -> list[str]:
        """Caption words for what is unusual about its condition."""
        return axes.unusual(self.identity, Role.CONDITION, but=["prompt_tokens"])

    @property
    def peers(self) -> tuple[Any, ...]:
        """Equal for boundaries that may be compared with each other."""
        return tuple(self.identity[name] for name in PEERS)


def quality_boundaries(table: pl.DataFrame) -> list[QualityBoundary]:
    """One per key of the `quality` table, modes in their own order."""
    baselines = {
        values: _in_context(rows)
        for values, rows in table.filter(is_baseline()).group_by(PEERS, maintain_order=True)
    }
    found = []
    for values, rows in table.group_by(KEY, maintain_order=True):
        identity = dict(zip(KEY, values, strict=True))
        baseline = baselines.get(tuple(identity[name] for name in PEERS))
        reference = _in_context(rows) if baseline is None else baseline
        found.append(_boundary(identity, rows.sort("position_start"), reference))
    return sorted(found, key=lambda row: (row.model, row.engine, mode_rank(row.mode)))


def _boundary(identity: Mapping[str, Any], rows: pl.DataFrame, reference: float | None) -> QualityBoundary:
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
        identity=identity,
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
