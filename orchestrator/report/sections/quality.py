"""Does the text stay sane? Perplexity along a long text, and the words themselves."""

import math
from collections.abc import Sequence

import polars as pl

from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Code, Folded, Paragraph, Picture, Section, Table, Verbatim
from orchestrator.report.pictures.curves import ChartAxis, Curve, Limit, Panel, draw
from orchestrator.report.pictures.theme import picture
from orchestrator.report.setting import Setting, equal_rows
from orchestrator.tables.quality import QualityBoundary, quality_boundaries
from workers.attempt import Attempt
from workers.modes import MODES, Dash

_GRAM = 8
#: Of curves of one policy whose keys and values are stored in fewer bits.
_STORED: dict[str, Dash] = {"fp8": (9, 3, 0), "int8": (5, 3, 0), "int4": (2, 3, 0)}


def quality(table: pl.DataFrame, names: Names) -> Section | None:
    """Of the `quality` table; None without scoring runs."""
    if table.is_empty():
        return None
    blocks: list[Block] = []
    found = quality_boundaries(table)
    peers: dict[tuple[object, ...], list[QualityBoundary]] = {}
    for row in found:
        peers.setdefault(row.peers, []).append(row)
    blocks += [_picture(rows, table, names) for rows in peers.values()]
    columns = [
        "model", "mode", "engine", "perplexity in context", "after it", "departs at", "scored to", "tokens/s",
    ]  # fmt: skip
    lines = [
        [
            ", ".join([names.row(dict(row.identity)), *row.others]), row.words, row.engine, formats.number(row.in_context, 2), formats.number(row.beyond, 2),
            formats.NOTHING if row.in_context is None else "never" if row.departs_at is None else f"{row.departs_at:,}",
            formats.count(row.scored_to), formats.number(row.tokens_per_s, 1),
        ]
        for row in found
    ]  # fmt: skip
    blocks.append(
        Table(columns, lines, "The third boundary: where the text falls apart", frozenset(columns[3:]))
    )
    blocks.append(
        Paragraph([
            "Perplexity of real text, every token predicted from what its cache policy keeps; the same tokens for every "
            "mode. In context: over the positions the model was trained on, of the baseline where it was scored; these "
            "are other tokens than those after it, and some stretches of a text are harder than others. Departs: the first position from which "
            "perplexity exceeds twice that value, over three buckets together, so that one odd stretch of text is "
            "no boundary."
        ])
    )  # fmt: skip
    return Section("Does the model still understand? Perplexity along the text", blocks)


def _picture(peers: Sequence[QualityBoundary], table: pl.DataFrame, names: Names) -> Picture:
    """The curves of one model, engine and condition, a curve for each of `peers`."""
    curves, contexts = [], []
    for row in peers:
        rows = _wide_enough(equal_rows(table, row.identity).sort("position_start"))
        contexts += rows["max_positions"].drop_nulls().to_list()
        policy = MODES[row.mode].policy
        curves.append(
            Curve(
                row.words, policy.colour, policy.control or _STORED.get(row.identity["kv_dtype"]),
                ((rows["position_start"] + rows["position_end"]) / 2).to_list(), [math.exp(min(nll, 50.0)) for nll in rows["nll_mean"]],
            )
        )  # fmt: skip
    model, engine, others = names.row(dict(peers[0].identity)), peers[0].engine, peers[0].others
    limits = [Limit(f"trained context {max(contexts):,}", x=float(max(contexts)))] if contexts else []
    panel = Panel(
        ", ".join([f"Perplexity along the text: {model}, {engine} engine", *others]), ChartAxis("position in the text (tokens)"),
        ChartAxis("perplexity (log scale)", log=True), curves, limits,
    )  # fmt: skip
    return picture(
        "-".join(["quality", model, engine, *others]), draw(panel), f"Lower is better; a bucket of positions per point.{_controls(peers)}",
        f"Perplexity against position for {model}",
    )  # fmt: skip


def _wide_enough(rows: pl.DataFrame) -> pl.DataFrame:
    """Without buckets of less than a third of the usual number of tokens: the last one may hold a single token."""
    return rows.filter(pl.col("num_tokens") * 3 >= pl.col("num_tokens").median())


def _controls(peers: Sequence[QualityBoundary]) -> str:
    names = [row.mode for row in peers if MODES[row.mode].policy.control is not None]
    if not names:
        return ""
    return (
        f" {formats.listing(names)}, there to be compared with, {'is' if len(names) == 1 else 'are'} dashed."
    )


def text_sanity(
    settings: Sequence[Setting], runs: dict[int, list[tuple[str, Attempt]]], *, is_scored: bool
) -> Section | None:
    """Beginning and end of what each mode wrote, at a length that all passed. `is_scored`: the run has quality, too."""
    random = [setting for setting in settings if setting.model.startswith("random:")]
    blocks: list[Block] = []
    if random:
        blocks.append(Paragraph(["Models with random weights write noise: their text says nothing."]))
    elif not is_scored:
        blocks.append(Paragraph(["Quality was not measured: ", Code("workload: score"), " does that."]))
    engines = len({setting.engine for setting in settings}) > 1
    for place, setting in enumerate(settings):
        inner = [block for name, attempt in runs[place] for block in _written(name, attempt)]
        if setting not in random and inner:
            blocks.append(Folded(f"{setting.words(engine=engines)}: what each mode wrote", inner))
    return Section("The text itself", blocks) if any(isinstance(b, Folded) for b in blocks) else None


def _written(name: str, attempt: Attempt) -> list[Block]:
    measured = attempt.measured
    if measured.text_head is None and measured.text_tail is None:
        return []
    share = repeated_share(attempt.output_ids)
    again = "" if share is None else f"; {share:.0%} of its runs of {_GRAM} tokens were there before"
    return [
        Paragraph([f"{name}, {measured.new_tokens:,} tokens{again}. It begins:"]),
        Verbatim(measured.text_head or ""),
        Paragraph([f"{name} ends:"]),
        Verbatim(measured.text_tail or ""),
    ]


def repeated_share(ids: Sequence[int]) -> float | None:
    """Return the share of the runs of eight tokens that were in the text before: near 1 for a text that goes in circles.
    None for a text of less than two such runs."""
    grams = [tuple(ids[start : start + _GRAM]) for start in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None
