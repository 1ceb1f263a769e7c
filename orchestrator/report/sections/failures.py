"""Every cell that did not end ok, with its evidence. Equal ends are told once, with all their lengths."""

from collections.abc import Container, Sequence
from typing import Any

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.explain.breakdown import explain
from orchestrator.explain.devices import devices_needed
from orchestrator.journal.journal import View
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import (
    Attachment,
    Block,
    Folded,
    Paragraph,
    Section,
    Span,
    Strong,
    Table,
    Verbatim,
)
from orchestrator.report.pictures.last_seconds import last_seconds
from orchestrator.report.setting import mode_words
from workers.attempt import Attempt
from workers.outcome import Outcome

_SAME = (
    "outcome",
    *axes.names(Role.SETTING, Role.CONDITION, *axes.VARIANT, Role.KIND),
    axes.DEVICE_KIND,
)
_FOR_SIZE = ("predicted_peak_bytes", "device_total_bytes", "device_reserve_bytes", "context_bytes")
_EXPECTED = [outcome.value for outcome in Outcome if outcome.is_expected]
#: Beyond these, an end is a line in the table, and its evidence in `tables/attempts.parquet`.
_IN_FULL, _PICTURED = 30, 8


def failures(attempts: pl.DataFrame, view: View, names: Names) -> Section:
    final = attempts.filter(pl.col("final"))
    ended = final.filter(pl.col("outcome") != Outcome.OK)
    retried = attempts.filter(~pl.col("final") & (pl.col("outcome") != Outcome.OK))
    if ended.is_empty() and retried.is_empty():
        return Section("What did not end ok", [Paragraph(["Every cell ended ok."])])
    groups = (
        _with_positions(ended)
        .group_by(_SAME)
        .agg(
            pl.len(),
            pl.col("length").unique().sort(),
            pl.col("row").min(),
            pl.col("error_message").first(),
            pl.col(_FOR_SIZE).max(),
        )
    )
    groups = groups.sort(pl.col("outcome").is_in(_EXPECTED), *_SAME, nulls_last=True)
    # Surprises in full, and of each mode that ran out of memory its first case.
    shown = groups.filter(pl.col("outcome") != Outcome.PRUNED).head(_IN_FULL)
    whole = view.whole(shown["row"].to_list())
    cases = [
        case
        for place, row in enumerate(shown["row"])
        for case in _evidence(whole[row], place < _PICTURED, names, _anchor(row))
    ]
    anchors = {case.anchor for case in cases}
    blocks: list[Block] = [Paragraph([counts(final)]), _table(groups, names, anchors)] if ended.height else []
    blocks += cases
    if retried.height:
        blocks.append(_retries(retried))
    return Section("What did not end ok", blocks)


def counts(final: pl.DataFrame) -> str:
    """Cells and probes apart, from the final attempts: a search has to meet its failures."""
    sentences = []
    for purpose, noun in (("measure", "cell"), ("probe", "probe")):
        of = final.filter(pl.col("purpose") == purpose)
        failed = of.filter(pl.col("outcome") != Outcome.OK)
        if failed.is_empty():
            if of.height:
                sentences.append(f"Every {noun} ended ok.")
            continue
        by_outcome = failed["outcome"].value_counts(sort=True).iter_rows()
        listed = formats.listing([f"{count:,} {outcome}" for outcome, count in by_outcome])
        why = ": a search looks for them" if purpose == "probe" else ""
        sentences.append(
            f"{failed.height:,} of {formats.plural(of.height, noun)} did not end ok ({listed}){why}."
        )
    return " ".join([*sentences, "An out-of-memory is a result, not an error."])


def _with_positions(ended: pl.DataFrame) -> pl.DataFrame:
    """A probe is told by its last position, whichever part of it was read as a prompt: equal ends are one line."""
    is_probe = pl.col("purpose") == "probe"
    return ended.with_columns(
        length=pl.when(is_probe).then(pl.col("prompt_tokens") + pl.col("length")).otherwise("length"),
        prompt_tokens=pl.when(~is_probe).then("prompt_tokens"),
    )


def _anchor(row: int) -> str:
    """Of the evidence of the attempt in this row of the journal."""
    return f"case-{row}"


def _table(groups: pl.DataFrame, names: Names, anchors: Container[str]) -> Table:
    groups = groups.sort(
        "model", "device_kind", "budget_bytes", "engine", nulls_last=True, maintain_order=True
    )
    columns = ["on", "outcome", "mode", "kind", "prompt", "batch", "lengths", "cells", "message"]
    rows = [
        [
            f"{names.row(row)} on {row['device_kind'] or 'no device'}, {formats.card(row['budget_bytes'])}, {row['engine']} engine",
            row["outcome"].replace("_", " "),
            mode_words(names, row),
            "probe, to position" if row["purpose"] == "probe" else row["workload"],
            formats.count(row["prompt_tokens"]),
            str(row["batch_size"]),
            _lengths(row["length"]),
            f"{row['len']:,}",
            _brief(_size(row) + (row["error_message"] or "")),
        ]
        for row in groups.iter_rows(named=True)
    ]
    evidence = [anchor if (anchor := _anchor(row)) in anchors else "" for row in groups["row"]]
    return Table(columns, rows, "", frozenset({"prompt", "batch", "cells"}), group="on", evidence=evidence)


def _size(row: dict[str, Any]) -> str:
    """What a model that does not load on one device would take; nothing where no size was predicted."""
    peak, total = row["predicted_peak_bytes"], row["device_total_bytes"]
    if row["outcome"] != Outcome.OOM_LOAD or peak is None or total is None:
        return ""
    needed = devices_needed(
        peak, row["budget_bytes"] or total, row["device_reserve_bytes"] or 0, row["context_bytes"] or 0
    )
    if needed is None or needed < 2:
        return ""
    return f"needs {formats.size(peak)}, {needed} such devices at least; "


def _lengths(values: Sequence[int]) -> str:
    if len(values) <= 6:
        return ", ".join(f"{value:,}" for value in values)
    return f"{len(values)} from {values[0]:,} to {values[-1]:,}"


def _brief(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _evidence(attempt: Attempt, pictured: bool, names: Names, anchor: str) -> list[Folded]:
    cell, failure = attempt.cell, attempt.failure
    inner: list[Block] = []
    explained = explain(attempt)
    if explained is not None:
        inner.append(Paragraph([explained.reading]))
        if explained.parts:
            rows = [
                [part.name, formats.size(part.bytes), f"{part.of_budget:.1%}"] for part in explained.parts
            ]
            inner.append(
                Table(["part", "size", "of the budget"], rows, "", frozenset({"size", "of the budget"}))
            )
        picture = last_seconds(attempt) if pictured else None
        if picture is not None:
            inner.append(picture)
    if failure is not None:
        facts: list[Span] = [Strong(failure.error_type), f", in phase {attempt.phase}"]
        facts += [f", signal {failure.signal}"] if failure.signal is not None else []
        facts += [f", exit code {failure.exit_code}"] if failure.exit_code is not None else []
        inner += [Paragraph(facts), Verbatim(failure.error_message[:4000])]
        inner += _output("last output", failure.last_output) + _output("stack", failure.stack_dump)
        if failure.memory_snapshot is not None:
            name = f"snapshots/{cell.cell_id}.pickle"
            inner.append(
                Attachment(name, failure.memory_snapshot, "Memory snapshot, for pytorch.org/memory_viz")
            )
    where = f"{names.model(cell.model.target, cell.model.dtype)} {cell.mode} ({cell.engine}), {cell.prompt_tokens:,} + {cell.length:,} tokens"
    title = (
        f"{str(attempt.outcome).replace('_', ' ')}: {where}, {formats.card(cell.budget)}, cell {cell.cell_id}"
    )
    return [Folded(title, inner, anchor)] if inner else []


def _output(title: str, text: str | None) -> list[Block]:
    return [Paragraph([f"{title}:"]), Verbatim(text[-6000:])] if text else []


def _retries(retried: pl.DataFrame) -> Folded:
    counts = retried.group_by("outcome", "device_uuid", "node").len().sort("len", descending=True).head(100)
    rows = [
        [row[0], row[1] or formats.NOTHING, row[2] or formats.NOTHING, f"{row[3]:,}"]
        for row in counts.iter_rows()
    ]
    title = f"{formats.plural(retried.height, 'attempt')} failed and the cell was tried again"
    return Folded(
        title, [Table(["outcome", "device", "node", "attempts"], rows, "", frozenset({"attempts"}))]
    )
