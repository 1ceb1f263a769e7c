"""What each way of keeping keys and values costs in quality, and how far it reaches: one table, one picture, one sentence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Paragraph, Picture, Section, Table
from orchestrator.report.pictures.curves import ChartAxis, Curve, Panel, draw
from orchestrator.report.pictures.theme import picture
from orchestrator.report.setting import mode_words
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.quality import KEY, PEERS
from workers.modes import MODES, SCORE
from workers.outcome import Outcome

#: A policy is recommended where it chooses the same next token at least this often,
_SAME = 0.95
#: and where the loss is above the baseline's by no more than this share.
_LOSS = 0.02
_MiB = 2**20
#: What a scored text and a boundary have in common.
_SAME_SETTING = axes.names(Role.SETTING, *axes.VARIANT)
#: Below it a divergence is that of rounding; a logarithmic axis has no zero.
_LEAST = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traded:
    """One policy of one model and card, of its longest scored text. `values`: of the attempt. `loss`: nats, of all positions.
    `boundary`: of generations in the same setting, where one was found."""

    words: str
    values: dict[str, Any]
    loss: float | None
    boundary: BoundaryRow | None

    @property
    def reach(self) -> int | None:
        """New tokens of the longest generation that fitted; None: not known."""
        return None if self.boundary is None else self.boundary.last_ok

    @property
    def is_whole(self) -> bool:
        """Whether it is what the others are compared with."""
        return all(self.values[name] == value for name, value in axes.usual(*axes.VARIANT).items())


def trade(
    attempts: pl.DataFrame, quality: pl.DataFrame, boundaries: Iterable[BoundaryRow], names: Names
) -> Section | None:
    """Of scored texts; None where no policy was compared with the full cache."""
    scored = attempts.filter(
        pl.col("final") & (pl.col("workload") == SCORE.name) & (pl.col("outcome") == Outcome.OK)
    )
    if scored["kl_mean"].null_count() == scored.height:
        return None
    blocks: list[Block] = [
        Paragraph([
            "The same text under each policy. KV: bytes of the live cache at its end. KL: divergence of the next-token distribution "
            "from that of a full cache in the model's dtype, in nats, over the first tokens of the text, each read alone; p99: "
            "of one token in a hundred it is larger. Same choice: how often both would choose the same next token. Loss: nats a token, "
            "over the whole text. Boundary: the most new tokens that were generated before memory ran out; with a plus, the search "
            "ended there and memory did not."
        ])
    ]  # fmt: skip
    group, reached = [*PEERS, axes.DEVICE_KIND], [row for row in boundaries if row.phase.startswith("decode")]
    for peers in scored.sort("length", descending=True).partition_by(group, maintain_order=True):
        rows = _rows(peers, quality, reached, names)
        title = f"{names.row(peers.row(0, named=True))} on {peers[axes.DEVICE_KIND][0]}, {peers['engine'][0]} engine, {peers['length'][0]:,} tokens"
        blocks += [_table(title, rows), _picture(title, rows)]
        if sentence := recommended(rows):
            blocks.append(Paragraph([sentence]))
    return Section("What is saved, and what is lost", blocks)


def _rows(
    peers: pl.DataFrame, quality: pl.DataFrame, boundaries: Sequence[BoundaryRow], names: Names
) -> list[_Traded]:
    longest = peers.filter(pl.col("length") == pl.col("length").max())
    found = []
    for values in longest.unique(axes.names(*axes.VARIANT), keep="first", maintain_order=True).iter_rows(
        named=True
    ):
        same = quality.filter(
            pl.all_horizontal(pl.col(name).eq_missing(pl.lit(values[name])) for name in KEY)
        )
        loss = None
        if same.height:
            tokens = pl.col("num_tokens")
            loss = float(same.select((pl.col("nll_mean") * tokens).sum() / tokens.sum()).item())
        boundary = next((row for row in boundaries if _is_of(row, values)), None)
        found.append(_Traded(words=mode_words(names, values), values=values, loss=loss, boundary=boundary))
    return sorted(found, key=lambda row: (-(row.values["kv_cache_bytes"] or 0), row.words))


def _is_of(row: BoundaryRow, values: dict[str, Any]) -> bool:
    return row.device_kind == values[axes.DEVICE_KIND] and all(
        row.identity[name] == values[name] for name in _SAME_SETTING
    )


def _table(title: str, rows: Sequence[_Traded]) -> Table:
    reaches = any(row.reach is not None for row in rows)
    columns = [
        "policy",
        *(["boundary"] if reaches else []),
        "KV",
        "peak",
        "tokens/s",
        "KL mean",
        "KL p99",
        "same choice",
        "loss",
    ]
    lines = [
        [
            row.words, *([_reach(row)] if reaches else []), formats.size(row.values["kv_cache_bytes"]), formats.size(row.values["peak_device_bytes"]),
            formats.number(row.values["tokens_per_s"]), *(_nats(row.values[name]) for name in ("kl_mean", "kl_p99")),
            formats.NOTHING if row.values["same_choice"] is None else f"{row.values['same_choice']:.1%}",
            formats.number(row.loss, 3),
        ]
        for row in rows
    ]  # fmt: skip
    return Table(columns, lines, title, frozenset(columns[1:]))


def _reach(row: _Traded) -> str:
    return formats.count(row.reach) + ("+" if row.boundary is not None and row.boundary.censored else "")


def _nats(value: float | None) -> str:
    return formats.NOTHING if value is None else f"{value:.2g}"


def _picture(title: str, rows: Sequence[_Traded]) -> Picture:
    """Boundary against KL where boundaries were found, else bytes against KL."""
    told = [row for row in rows if row.values["kl_mean"] is not None]
    far = [row for row in told if row.reach]
    if far:
        told, across = far, [row.reach or 0 for row in far]
        what, side = ChartAxis("boundary (new tokens)"), "Lower right is better: longer texts"
    else:
        told = [row for row in told if row.values["kv_cache_bytes"]]
        across = [row.values["kv_cache_bytes"] / _MiB for row in told]
        what, side = ChartAxis("keys and values (MiB)"), "Lower left is better: less memory"
    curves = [
        Curve(
            row.words,
            MODES[row.values["mode"]].policy.colour,
            None,
            [x],
            [max(row.values["kl_mean"], _LEAST)],
        )
        for row, x in zip(told, across, strict=True)
    ]
    panel = Panel(
        f"{'Boundary' if far else 'Memory'} against closeness: {title}", what,
        ChartAxis("KL (nats, log scale)", log=True, format=".0e"), curves, points=True,
    )  # fmt: skip
    return picture(
        f"trade-{title}", draw(panel), f"{side}, closer to the full cache.",
        f"KL against {'boundary' if far else 'bytes of the cache'} for {title}",
    )  # fmt: skip


def recommended(rows: Sequence[_Traded]) -> str | None:
    """The smallest cache that is close, and what it loses; None without a full cache to compare with."""
    whole = next((row for row in rows if row.is_whole), None)
    if whole is None or not whole.values["kv_cache_bytes"]:
        return None
    close = [row for row in rows if _is_close(row, whole)]
    if not close:
        return (
            f"Keep {whole.words}: no other policy here chooses the same next token {_SAME:.0%} of the time at a loss within "
            f"{_LOSS:.0%} of its loss."
        )
    best = min(close, key=lambda row: row.values["kv_cache_bytes"])
    share = best.values["kv_cache_bytes"] / whole.values["kv_cache_bytes"]
    assert best.loss is not None
    assert whole.loss is not None
    return (
        f"Use {best.words}: it takes {share:.0%} of the keys and values of {whole.words} on this text; after "
        f"{1 - best.values['same_choice']:.1%} of the tokens it would have chosen another one, and the loss changes by "
        f"{best.loss / whole.loss - 1:+.1%}.{_further(best, whole)}"
    )


def _further(best: _Traded, whole: _Traded) -> str:
    if best.boundary is None or not best.reach or whole.boundary is None or not whole.reach:
        return ""
    if whole.boundary.censored:
        return f" Neither runs out of memory within {min(best.reach, whole.reach):,} tokens."
    least = "at least " if best.boundary.censored else ""
    return (
        f" It generates {least}{best.reach:,} tokens before memory ends, {whole.words} {whole.reach:,}: "
        f"{least}{best.reach / whole.reach:.2f} times as many."
    )


def _is_close(row: _Traded, whole: _Traded) -> bool:
    if row.loss is None or whole.loss is None or row.values["same_choice"] is None:
        return False
    saves = 0 < (row.values["kv_cache_bytes"] or 0) < whole.values["kv_cache_bytes"]
    return saves and row.values["same_choice"] >= _SAME and row.loss <= whole.loss * (1 + _LOSS)
