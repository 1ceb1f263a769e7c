"""Where an output first departs from the one it should equal (speculation) or is compared with (streaming)."""

import polars as pl

from orchestrator import axes
from orchestrator.axes import VARIANT, Role
from orchestrator.journal.journal import View
from orchestrator.tables.baseline import is_baseline
from orchestrator.tables.speed_rows import measures_speed
from workers.modes import DECODERS, PLAIN
from workers.outcome import Outcome

#: Equal prompts under equal rules. The budget, say, changes no token, so a twin may come from a larger card.
_SAME = (
    *axes.same_tokens(Role.SETTING, Role.CONDITION),
    *(axes.DEVICE_KIND, "prompt_sha256", "seed"),
)
_POLICY = axes.same_tokens(Role.POLICY)


def divergence(view: View) -> pl.DataFrame:
    """`row` -> the first new token that differs from a twin's, null where none does or there is no twin.

    `first_divergence`: from the baseline twin; `compared_tokens`: how many tokens of each sequence that covers, null
    without a twin. `first_divergence_plain`, `compared_tokens_plain`: the same for an attempt whose decoder
    must match the plain one, and its plain twin. A twin has the same length where there is one, else (batch size 1) it is the longest output of its
    mode: greedy outputs of one prompt are prefixes of each other. With several sequences, the smallest index over
    all.
    """
    facts = view.light.filter(
        (pl.col("outcome") == Outcome.OK)
        & measures_speed()
        & (pl.col("purpose") == "measure")
        & pl.col("output_sha256").is_not_null()
    ).select("row", "length", "new_tokens", *_SAME, *axes.names(*VARIANT), "output_sha256")
    matching = pl.col("decoder").is_in([d.name for d in DECODERS.values() if d.matches_plain])
    is_plain = pl.col("decoder") == PLAIN.name
    baseline = _twins(facts, facts.filter(is_baseline()), _SAME)
    plain = _twins(facts.filter(matching), facts.filter(is_plain), (*_SAME, *_POLICY))
    found = _compared(
        view,
        pl.concat([baseline.with_columns(against=pl.lit("")), plain.with_columns(against=pl.lit("_plain"))]),
    )
    one, other = (found.filter(against=against).drop("against") for against in ("", "_plain"))
    return one.join(other, on="row", how="full", coalesce=True, suffix="_plain")


def _twins(facts: pl.DataFrame, candidates: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
    """`row`, its `twin` (a row too), `new_tokens`, `compared_tokens`, and both hashes."""
    about = ["row", "new_tokens", "output_sha256"]
    exact = candidates.unique([*key, "length"], keep="first", maintain_order=True)
    longest = candidates.filter(pl.col("batch_size") == 1).sort(
        "new_tokens", descending=True, maintain_order=True
    )
    longest = longest.unique(list(key), keep="first", maintain_order=True)
    return (
        facts.join(
            exact.select(*key, "length", *about),
            on=[*key, "length"],
            how="left",
            nulls_equal=True,
            suffix="_e",
        )
        .join(longest.select(*key, *about), on=list(key), how="left", nulls_equal=True, suffix="_l")
        .select(
            "row",
            "new_tokens",
            "output_sha256",
            twin=pl.coalesce("row_e", "row_l"),
            twin_sha256=pl.coalesce("output_sha256_e", "output_sha256_l"),
            compared_tokens=pl.min_horizontal("new_tokens", pl.coalesce("new_tokens_e", "new_tokens_l")),
        )
        .filter(pl.col("twin").is_not_null())
    )


#: Equal pairs of outputs depart at the same token: repeats of a cell are compared once.
_PAIR = ["output_sha256", "twin_sha256", "new_tokens"]


def _compared(view: View, twins: pl.DataFrame) -> pl.DataFrame:
    """`row`, `against`, `first_divergence`, `compared_tokens`. Ids are read only where the hashes differ."""
    unequal = twins.filter(pl.col("output_sha256") != pl.col("twin_sha256"))
    pairs = unequal.unique(_PAIR, keep="first", maintain_order=True)
    ids = view.beside([*pairs["row"], *pairs["twin"]]).select("row", "output_ids")
    shorter = pl.min_horizontal(pl.col("output_ids").list.len(), pl.col("other_ids").list.len())
    found = (
        ids.join(pairs.lazy().select("row", "twin", *_PAIR), on="row")
        .join(ids.select(twin="row", other_ids="output_ids"), on="twin")
        .with_columns(pl.col("output_ids", "other_ids").list.head(shorter), at=pl.int_ranges(0, shorter))
        .explode("output_ids", "other_ids", "at")
        .filter(pl.col("output_ids") != pl.col("other_ids"))
        .group_by(_PAIR)
        .agg(first_divergence=(pl.col("at") % pl.col("new_tokens")).min())
        .collect(engine="streaming")
    )
    return twins.join(found, on=_PAIR, how="left").select(
        "row", "against", "first_divergence", "compared_tokens"
    )
