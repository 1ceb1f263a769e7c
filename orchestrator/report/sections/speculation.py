"""Speculation, honestly: what was accepted, what it cost, what it gave, and when it would pay."""

from typing import Any

import polars as pl

from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Paragraph, Section, Table
from orchestrator.report.setting import mode_words
from orchestrator.report.speculation_costs import Speculated, speculated
from orchestrator.report.speed_claims import ENOUGH

_COLUMNS = (
    *("on", "mode", "length", "gamma", "acceptance", "tokens/step", "speed-up", "c", "v", "round cost"),
    *("break-even", "energy", "same text"),
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
            "round costs more than it could ever yield; told from three repeats on. A speed-up in brackets: fewer runs, or runs on a "
            "noisy machine, do not carry it. Energy: per token, over that of the plain twin. A v below 1, marked “noise”: verifying cannot be cheaper than a step. Same text: the output equals the plain twin's, token for token."
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
        _speedup(item),
        formats.number(item.draft_cost, 2),
        _verify_cost(item.verify_cost),
        formats.number(item.round_cost, 2),
        _break_even(item),
        formats.times(item.energy),
        _same_text(row),
    ]


def _speedup(item: Speculated) -> str:
    ratio = item.speedup
    return formats.times(ratio) if ratio is None or item.carried else f"({formats.times(ratio)})"


def _verify_cost(cost: float | None) -> str:
    return formats.number(cost, 2) + (" (noise)" if cost is not None and round(cost, 2) < 1 else "")


def _break_even(item: Speculated) -> str:
    """Nothing from one run or two, nor from a noisy machine: it would be a sentence about the noise."""
    if item.repeats < ENOUGH or not item.carried:
        return formats.NOTHING
    if item.round_cost is not None and item.break_even is None:
        return "never"
    return formats.number(item.break_even, 2)


def _same_text(row: dict[str, Any]) -> str:
    if row["compared_tokens_plain_max"] is None:
        return "no twin"
    departs = row["first_divergence_plain_min"]
    return "yes" if departs is None else f"departs at {departs:,}"
