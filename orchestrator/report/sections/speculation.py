"""Speculation, honestly: what was accepted, what it cost, what it gave, and when it would pay."""

from typing import Any

import polars as pl

from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Paragraph, Section, Table
from orchestrator.report.setting import mode_words
from orchestrator.report.speculation_costs import Speculated, speculated

_COLUMNS = (
    *("on", "mode", "length", "gamma", "acceptance", "tokens/step", "speed-up", "c", "v", "round cost"),
    *("break-even", "same text"),
)


def speculation(summary: pl.DataFrame, names: Names) -> Section | None:
    found = speculated(summary)
    if not found:
        return None
    blocks: list[Block] = [
        Paragraph([
            "Speed-up: measured, against the same cache policy without speculation. In units of one plain step of the "
            "target: c = a step of the draft, v = verifying gamma + 1 tokens, round cost = a whole round as measured "
            "(its excess over gamma·c + v is overhead). Above the break-even acceptance speculation pays; “never”: a "
            "round costs more than it could ever yield. Same text: the output equals the plain twin's, token for token."
        ]),
        Table(_COLUMNS, [_line(item, names) for item in found], "", frozenset(_COLUMNS[2:-1]), group="on"),
    ]  # fmt: skip
    if any(item.row["acceptance_injected"] is not None for item in found):
        blocks.append(
            Paragraph([
                "Rows marked “injected” force that acceptance with an oracle draft: they answer what a draft of that "
                "quality would give, not what this draft gives."
            ])
        )  # fmt: skip
    return Section("Speculation", blocks)


def _line(item: Speculated, names: Names) -> list[str]:
    row = item.row
    return [
        f"{names.row(row)} on {row['device_kind']}, {formats.card(row['budget_bytes'])}, {row['engine']} engine",
        mode_words(names, row),
        formats.count(row["length"]),
        formats.count(row["gamma"]),
        formats.number(item.acceptance, 2),
        formats.number(item.tokens_per_step, 2),
        formats.times(item.speedup),
        formats.number(item.draft_cost, 2),
        formats.number(item.verify_cost, 2),
        formats.number(item.round_cost, 2),
        "never"
        if item.round_cost is not None and item.break_even is None
        else formats.number(item.break_even, 2),
        _same_text(row),
    ]


def _same_text(row: dict[str, Any]) -> str:
    if row["compared_tokens_plain_max"] is None:
        return "no twin"
    departs = row["first_divergence_plain_min"]
    return "yes" if departs is None else f"departs at {departs:,}"
