"""Computes what speculation cost and gave, beside its plain twin. The formula is in docs/report.md."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.report.speed_claims import is_carried, speed_of
from orchestrator.spec import rate_for_mean_length
from orchestrator.tables.summary import CONDITIONS
from workers.modes import MODES


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculated:
    """One speculative row of `summary` with its plain twin.

    `speedup`: measured, against the plain twin of the same cache policy. `draft_cost` c: one draft step in units of a
    plain target step; `verify_cost` v: one verification in the same unit; `round_cost`: a whole round, measured as
    tokens per step / speed-up, so that `round_cost - gamma c - v` is the overhead o.
    `energy`: per token, over the twin's. `repeats`: the fewer of its own and its twin's. `carried`: the runs carry the speed-up. `break_even`: the acceptance above which speculation pays at that round cost, None where no acceptance does.
    """

    row: dict[str, Any]
    repeats: int
    carried: bool
    energy: float | None
    acceptance: float | None
    tokens_per_step: float | None
    speedup: float | None
    draft_cost: float | None
    verify_cost: float | None
    round_cost: float | None
    break_even: float | None


def speculated(summary: pl.DataFrame) -> list[Speculated]:
    """Every speculative row whose cells passed, in the summary's order."""
    rows = summary.filter(pl.col("tokens_per_s_median").is_not_null()).to_dicts()
    plain = {_key(row): row for row in rows if not MODES[row["mode"]].decoder.verifies}
    return [_beside(row, plain.get(_key(row))) for row in rows if MODES[row["mode"]].decoder.verifies]


def _ratio(row: dict[str, Any], twin: dict[str, Any] | None, column: str) -> float | None:
    if twin is None or not row[column] or not twin[column]:
        return None
    return float(row[column] / twin[column])


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a speculative row and its plain twin have in common."""
    return tuple(row[name] for name in (*CONDITIONS, *axes.names(Role.POLICY)))


def _beside(row: dict[str, Any], twin: dict[str, Any] | None) -> Speculated:
    step = twin["tpot_p50_s_median"] if twin else None
    speedup = row["tokens_per_s_median"] / twin["tokens_per_s_median"] if twin else None
    gained = row["tokens_per_step_median"]
    cost = gained / speedup if gained and speedup else None
    gamma = row["gamma"]
    return Speculated(
        row=row,
        repeats=min(row["n_ok"], twin["n_ok"]) if twin else row["n_ok"],
        energy=_ratio(row, twin, "energy_per_token_j_median"),
        carried=twin is None or is_carried(speed_of(row["mode"], row), speed_of(twin["mode"], twin)),
        acceptance=row["acceptance_rate_median"],
        tokens_per_step=gained,
        speedup=speedup,
        draft_cost=row["draft_step_s_median"] / step if step and row["draft_step_s_median"] else None,
        verify_cost=row["verify_step_s_median"] / step if step and row["verify_step_s_median"] else None,
        round_cost=cost,
        break_even=None if cost is None or cost > gamma + 1 else rate_for_mean_length(max(cost, 1.0), gamma),
    )
