"""What a report talks about at a time: one model with one engine on one kind of device under one budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator.report import formats
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.write import Tables
from workers.modes import MODES

_SCENE = ("model", "dtype", "device_kind", "budget_bytes", "engine")
#: Everything else that keeps the rows of two modes from being compared.
_CONDITION = (
    "prompt_tokens",
    "batch_size",
    "repetition_penalty",
    "corpus",
    "prefill_chunk",
    "attn_implementation",
)
_VARIANT = ("mode", "draft", "gamma", "acceptance_injected", "sinks", "window")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A mode with what else tells its curves apart. `injected`: acceptance forced by an oracle draft."""

    mode: str
    draft: str | None
    gamma: int | None
    injected: float | None
    sinks: int | None
    window: int | None

    @property
    def policy(self) -> str:
        return str(MODES[self.mode].policy)

    @property
    def speculative(self) -> bool:
        return MODES[self.mode].speculative

    @property
    def order(self) -> tuple[int, str, float]:
        return list(MODES).index(self.mode), self.draft or "", self.injected or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One prompt, batch and penalty of a setting: `summary` and the final measured `attempts` under it."""

    prompt_tokens: int
    batch_size: int
    repetition_penalty: float
    summary: pl.DataFrame
    attempts: pl.DataFrame

    def words(self) -> str:
        batch = "" if self.batch_size == 1 else f", batch {self.batch_size}"
        penalty = "" if self.repetition_penalty == 1 else f", repetition penalty {self.repetition_penalty:g}"
        return f"{self.prompt_tokens:,} prompt tokens{batch}{penalty}"

    def asks(self, row: BoundaryRow) -> bool:
        """Whether a boundary was searched (or read off) under this condition."""
        if (row.batch_size, row.repetition_penalty) != (self.batch_size, self.repetition_penalty):
            return row.axis == "batch_size" and row.repetition_penalty == self.repetition_penalty
        grows = row.prompt_tokens is None or row.phase == "decode_after_prefill"
        return grows or row.prompt_tokens == self.prompt_tokens

    def variants(self) -> list[Variant]:
        return sorted(
            (_variant(row) for row in self.summary.select(_VARIANT).unique().iter_rows()), key=_order
        )

    def of(self, variant: Variant, frame: pl.DataFrame) -> pl.DataFrame:
        values = (variant.mode, variant.draft, variant.gamma, variant.injected, variant.sinks, variant.window)
        return _equal(frame, _VARIANT, values)

    def name(self, variant: Variant) -> str:
        """The mode, and the draft or the injected rate where there are several."""
        same = [other for other in self.variants() if other.mode == variant.mode]
        name = variant.mode
        if len({other.draft for other in same}) > 1 and variant.draft is not None:
            name += f" · {short(variant.draft)}"
        return name if variant.injected is None else f"{name} · injected {variant.injected:.2g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`conditions`: the one with most rows first; pictures and sentences are about that one. `probes`: the final
    attempts of its boundary searches."""

    model: str
    dtype: str
    device_kind: str
    budget_bytes: int | None
    engine: str
    total_bytes: int | None
    conditions: Sequence[Condition]
    boundaries: Sequence[BoundaryRow]
    probes: pl.DataFrame

    @property
    def main(self) -> Condition:
        return self.conditions[0]

    @property
    def limit_bytes(self) -> int | None:
        return self.total_bytes if self.budget_bytes is None else self.budget_bytes

    def words(self, *, engine: bool) -> str:
        where = (
            f"{short(self.model)} on {self.device_kind}, {formats.card(self.budget_bytes, self.total_bytes)}"
        )
        return f"{where}, {self.engine} engine" if engine else where

    def slug(self) -> str:
        budget = "device" if self.budget_bytes is None else formats.card(self.budget_bytes).replace(" ", "")
        return f"{short(self.model)}-{self.device_kind}-{budget}-{self.engine}"


def settings(tables: Tables) -> list[Setting]:
    """Of measured cells, and of searches whose cells have not run yet."""
    generated = tables.attempts.filter(pl.col("final") & (pl.col("workload") == "generate"))
    measured = generated.filter(pl.col("purpose") == "measure")
    probes = generated.filter(pl.col("purpose") == "probe")
    totals = dict(
        tables.attempts.filter(pl.col("device_kind").is_not_null())
        .group_by("device_kind")
        .agg(pl.col("device_total_bytes").min())
        .iter_rows()
    )
    searched = pl.DataFrame(
        [
            tuple(getattr(row, name) for name in _SCENE)
            for row in tables.boundaries
            if row.last_ok is not None or row.first_oom is not None
        ],
        schema={name: tables.summary.schema[name] for name in _SCENE},
        orient="row",
    )
    names = pl.concat([tables.summary.select(_SCENE), searched]).unique().sort(_SCENE, nulls_last=True)
    names = names.filter(pl.col("device_kind").is_not_null())
    found = []
    for values in names.iter_rows():
        model, dtype, kind, budget, engine = values
        rows, attempts = _equal(tables.summary, _SCENE, values), _equal(measured, _SCENE, values)
        boundaries = [
            row for row in tables.boundaries if tuple(getattr(row, name) for name in _SCENE) == values
        ]
        found.append(
            Setting(
                model=model,
                dtype=dtype,
                device_kind=kind,
                budget_bytes=budget,
                engine=engine,
                total_bytes=totals.get(kind),
                conditions=_conditions(rows, attempts) or [_searched(boundaries, rows, attempts)],
                boundaries=boundaries,
                probes=_equal(probes, _SCENE, values),
            )
        )
    return found


def short(name: str) -> str:
    """The last part of a hub id or a path; that weights are random is said elsewhere, loudly."""
    return name.removeprefix("random:").rstrip("/").rpartition("/")[2]


def _conditions(rows: pl.DataFrame, attempts: pl.DataFrame) -> list[Condition]:
    sizes = (
        rows.group_by(_CONDITION)
        .len()
        .sort("len", *_CONDITION, descending=[True, *([False] * len(_CONDITION))])
    )
    return [
        Condition(
            prompt_tokens=values[0],
            batch_size=values[1],
            repetition_penalty=values[2],
            summary=_equal(rows, _CONDITION, values),
            attempts=_equal(attempts, _CONDITION, values),
        )
        for *values, _ in sizes.iter_rows()
    ]


def _searched(rows: Sequence[BoundaryRow], summary: pl.DataFrame, attempts: pl.DataFrame) -> Condition:
    """That of searches alone: nothing was measured under it."""
    row = min(rows, key=lambda row: row.phase != "decode")
    return Condition(
        prompt_tokens=row.prompt_tokens or 0,
        batch_size=row.batch_size,
        repetition_penalty=row.repetition_penalty,
        summary=summary,
        attempts=attempts,
    )


def _variant(values: tuple[object, ...]) -> Variant:
    mode, draft, gamma, injected, sinks, window = values
    return Variant(mode=mode, draft=draft, gamma=gamma, injected=injected, sinks=sinks, window=window)  # type: ignore[arg-type]


def _order(variant: Variant) -> tuple[int, str, float]:
    return variant.order


def _equal(frame: pl.DataFrame, columns: Sequence[str], values: Sequence[object]) -> pl.DataFrame:
    """The rows whose columns have these values; None equals None."""
    return frame.filter(
        pl.all_horizontal(pl.col(c).eq_missing(pl.lit(v)) for c, v in zip(columns, values, strict=True))
    )
