"""Does the model still find what it read? Accuracy by length and depth."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import (
    Block,
    Folded,
    Paragraph,
    Picture,
    Section,
    Span,
    Strong,
    Table,
    Verbatim,
)
from orchestrator.report.pictures.heat_map import HeatMap, draw_heat_maps
from orchestrator.report.pictures.theme import picture
from orchestrator.report.setting import equal_rows
from orchestrator.tables.retrieval import KEY, PEERS, SHARE
from workers.modes import MODES, Layout, Streaming
from workers.retrieval.tasks import TASKS

#: Wrong answers that are shown for each map.
_EXAMPLES = 2


def retrieval(table: pl.DataFrame, effective: pl.DataFrame, names: Names) -> Section | None:
    """Of the `retrieval` and `effective_length` tables; None without such runs."""
    if table.is_empty():
        return None
    peers = _by_peers(effective)
    blocks: list[Block] = [_picture(rows, table, names) for rows in peers]
    columns = [
        "model",
        "mode",
        "engine",
        "task",
        "effective length",
        "accuracy there",
        "chance",
        "shortest to longest",
    ]
    lines = [
        [
            ", ".join([names.row(row), *_others(row)]), row["mode"], row["engine"], row["task"], length_words(row),
            _accuracy(row), _chance(row["task"]), f"{row['shortest']:,} to {row['longest']:,}",
        ]
        for rows in peers for row in rows
    ]  # fmt: skip
    blocks.append(
        Table(columns, lines, "The fourth boundary: where retrieval falls apart", frozenset(columns[4:]))
    )
    forms = (
        "the tokenizer's chat template" if table["chat"].any() else "a plain text that the model completes"
    )
    blocks.append(
        Paragraph([
            f"What was hidden in a text is asked for at its end; the same samples for every mode, greedy decoding, "
            f"prompts in {forms}, each exactly of its length in the model's own tokens. An answer is right where "
            "it contains all that was asked for, as RULER counts. Chance: one guess by who knows the task and has not seen the text. "
            "Effective length: the last length up to which accuracy, all "
            f"depths together, stays at or above {SHARE:.0%} of that at the shortest; intervals are Wilson's, 95 %."
        ])
    )  # fmt: skip
    wrong = [block for rows in peers for row in rows for block in _examples(row, table, names)]
    if wrong:
        blocks.append(Folded("Some of the wrong answers", wrong))
    return Section("Does the model still find it? Retrieval by length and depth", blocks)


def found_sentences(effective: pl.DataFrame, names: Names) -> list[list[Span]]:
    """One sentence per model, engine, task and condition: up to where each mode finds what it read."""
    sentences: list[list[Span]] = []
    for rows in _by_peers(effective):
        first = rows[0]
        asked = f"{names.row(first)} asked for what it read, {first['engine']} engine, task {first['task']}"
        told: dict[str, list[str]] = {}
        for row in rows:
            told.setdefault(_up_to(row), []).append(row["mode"])
        phrases = [f"{formats.listing(modes)} {words}" for words, modes in told.items()]
        sentences.append([Strong(", ".join([asked, *_others(first)])), f": {'; '.join(phrases)}."])
    return sentences


def _by_peers(effective: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """The rows of each model, engine, task and condition together."""
    peers: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in effective.iter_rows(named=True):
        peers.setdefault(tuple(row[name] for name in PEERS), []).append(row)
    return list(peers.values())


def _up_to(row: dict[str, Any]) -> str:
    if row["effective_length"] is None:
        return f"found nothing at {row['shortest']:,} tokens, the shortest tried"
    if row["censored"]:
        return f"found it up to {row['effective_length']:,} tokens, the longest tried"
    return f"found it up to {row['effective_length']:,} tokens, and no longer at {row['first_below']:,}"


def length_words(row: dict[str, Any]) -> str:
    """An effective length as a person reads it. `row`: of the `effective_length` table."""
    if row["effective_length"] is None:
        return f"none: nothing found at {row['shortest']:,}"
    return f"{'≥ ' if row['censored'] else ''}{row['effective_length']:,}"


def _accuracy(row: dict[str, Any]) -> str:
    if row["accuracy"] is None:
        return formats.NOTHING
    return f"{row['accuracy']:.0%} ({row['ci_low']:.0%} to {row['ci_high']:.0%})"


def _chance(task: str) -> str:
    """Of one guess, as a person reads it."""
    once_in = 1 / TASKS[task].chance
    return f"1 in {once_in:,.0f}" if once_in < 1e6 else "below 1 in a million"


def _others(row: dict[str, Any]) -> list[str]:
    return axes.unusual(row, Role.CONDITION, but=["prompt_tokens", "task"])


def _picture(rows: Sequence[dict[str, Any]], table: pl.DataFrame, names: Names) -> Picture:
    """The maps of one model, engine, task and condition, a map for each mode."""
    first = rows[0]
    maps = [HeatMap(_title(row, rows), _of(row, table), _window(row), row["max_positions"]) for row in rows]
    model, engine, task = names.row(first), first["engine"], first["task"]
    about = ", ".join([model, f"{engine} engine", *_others(first)])
    return picture(
        "-".join(["retrieval", task, model, engine, *_others(first)]), draw_heat_maps(maps),
        f"{about}: task {task} ({TASKS[task].what}). Per cent of right answers; by chance {_chance(task)}, so 0 is at chance. Tick: "
        "above it the needle has left the window. Dashed: the trained context ends.",
        f"Retrieval by length and depth for {model}, task {task}",
    )  # fmt: skip


def _title(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The mode, and its window where another map of the picture has the same mode."""
    alike = sum(other["mode"] == row["mode"] for other in rows) > 1
    return (
        f"{row['mode']}, window {row['window']}" if alike and row["window"] is not None else str(row["mode"])
    )


def _window(row: dict[str, Any]) -> int | None:
    """The last tokens that are kept; None where all are, or others are chosen."""
    policy = MODES[row["mode"]].policy
    if policy.layout is not Layout.RING or row["sinks"] is None or row["window"] is None:
        return None
    context = policy.context(Streaming(sinks=row["sinks"], window=row["window"]))
    return None if context is None else context.window


def _of(row: dict[str, Any], table: pl.DataFrame) -> pl.DataFrame:
    return equal_rows(table, {name: row[name] for name in KEY})


def _examples(row: dict[str, Any], table: pl.DataFrame, names: Names) -> list[Block]:
    blocks: list[Block] = []
    missed = _of(row, table).filter(pl.col("correct") < pl.col("samples")).head(_EXAMPLES)
    for found in missed.iter_rows(named=True):
        where = "" if found["depth"] is None else f", depth {found['depth']:.0%}"
        blocks.append(
            Paragraph([
                f"{names.row(row)}, {row['mode']}, {row['engine']} engine, task {row['task']}, {found['length']:,} tokens"
                f"{where}: asked for {found['example_expected']}, answered:"
            ])
        )  # fmt: skip
        blocks.append(Verbatim(found["example_answer"]))
    return blocks
