"""What a report talks about at a time: one model with one engine on one kind of device under one budget."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.names import Names, short_names
from orchestrator.report import formats
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.speed_rows import measures_speed
from orchestrator.tables.write import Tables
from workers.modes import MODES, Dash, mode_rank

_SETTING = (*axes.names(Role.SETTING), axes.DEVICE_KIND)
_CONDITION = axes.names(Role.CONDITION)
_VARIANT = axes.names(*axes.VARIANT)


@dataclass(frozen=True, slots=True)
class Variant:
    """A mode with what else tells its curves apart. `values`: of the axes of `axes.VARIANT`, in their order."""

    values: tuple[Any, ...]

    def __getitem__(self, axis: str) -> Any:
        return self.values[_VARIANT.index(axis)]

    @property
    def mode(self) -> str:
        return cast(str, self["mode"])

    @property
    def draft(self) -> str | None:
        return cast(str | None, self["draft"])

    @property
    def injected(self) -> float | None:
        """Acceptance forced by an oracle draft."""
        return cast(float | None, self["acceptance_injected"])

    @property
    def colour(self) -> str:
        """Of its curves: its policy's."""
        return MODES[self.mode].policy.colour

    @property
    def dash(self) -> Dash | None:
        """Of its curves: its decoder's."""
        return MODES[self.mode].decoder.dash

    @property
    def order(self) -> tuple[Any, ...]:
        known = tuple((value is not None, value) for value in self.values)
        return mode_rank(self.mode), self.draft or "", self.injected or 0.0, known


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What has to be equal before two modes are compared: `summary` and the final measured `attempts` under it.

    `values`: of the axes with the role CONDITION, by name.
    """

    values: Mapping[str, Any]
    summary: pl.DataFrame
    attempts: pl.DataFrame

    @property
    def prompt_tokens(self) -> int:
        return cast(int, self.values["prompt_tokens"])

    def words(self) -> str:
        others = axes.unusual(self.values, Role.CONDITION, but=["prompt_tokens"])
        return ", ".join([f"{self.prompt_tokens:,} prompt tokens", *others])

    def asks(self, row: BoundaryRow, but: Collection[str] = ()) -> bool:
        """Whether a boundary was searched (or read off) under this condition, whatever the values of the axes `but`."""
        grows = {"batch_size", *but} if row.axis == "batch_size" else {*but}
        if row.prompt_tokens is None or row.phase == "decode_after_prefill":
            grows.add("prompt_tokens")
        return all(row.identity[name] == value for name, value in self.values.items() if name not in grows)

    def variants(self) -> list[Variant]:
        found = [Variant(row) for row in self.summary.select(_VARIANT).unique().iter_rows()]
        return sorted(found, key=lambda variant: variant.order)

    def of(self, variant: Variant, frame: pl.DataFrame) -> pl.DataFrame:
        return equal_rows(frame, dict(zip(_VARIANT, variant.values, strict=True)))

    def name(self, variant: Variant) -> str:
        return tell_apart(variant, self.variants())


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`values`: of the axes with the role SETTING, and of `device_kind`, by name. `conditions`: the one with most rows
    first; pictures and sentences are about that one. `probes`: the final attempts of its boundary searches.
    """

    values: Mapping[str, Any]
    names: Names
    total_bytes: int | None
    conditions: Sequence[Condition]
    boundaries: Sequence[BoundaryRow]
    probes: pl.DataFrame

    @property
    def model(self) -> str:
        return cast(str, self.values["model"])

    @property
    def called(self) -> str:
        """The model, told from the others of its report."""
        return self.names.row(dict(self.values))

    @property
    def device_kind(self) -> str:
        return cast(str, self.values[axes.DEVICE_KIND])

    @property
    def budget_bytes(self) -> int | None:
        return cast(int | None, self.values["budget_bytes"])

    @property
    def engine(self) -> str:
        return cast(str, self.values["engine"])

    @property
    def card(self) -> tuple[Any, ...]:
        """Everything but the engine: equal for settings that one sentence of the answer is about."""
        return tuple(value for name, value in self.values.items() if name != "engine")

    @property
    def main(self) -> Condition:
        return self.conditions[0]

    @property
    def limit_bytes(self) -> int | None:
        return self.total_bytes if self.budget_bytes is None else self.budget_bytes

    def words(self, *, engine: bool) -> str:
        where = f"{self.called} on {self.device_kind}, {formats.card(self.budget_bytes, self.total_bytes)}"
        return f"{where}, {self.engine} engine" if engine else where

    def slug(self) -> str:
        budget = "device" if self.budget_bytes is None else formats.card(self.budget_bytes).replace(" ", "")
        return f"{self.called}-{self.device_kind}-{budget}-{self.engine}"


def names_of(table: pl.DataFrame) -> Names:
    """Of the models in a table."""
    return Names.of(table.select("model", "dtype", "draft").unique().iter_rows())


def settings(tables: Tables) -> list[Setting]:
    """Of measured cells, and of searches whose cells have not run yet."""
    generated = tables.attempts.filter(pl.col("final") & measures_speed())
    measured = generated.filter(pl.col("purpose") == "measure")
    probes = generated.filter((pl.col("purpose") == "probe") & ~pl.col("synthetic"))
    totals = dict(
        tables.attempts.filter(pl.col("device_kind").is_not_null())
        .group_by("device_kind")
        .agg(pl.col("device_total_bytes").min())
        .iter_rows()
    )
    searched = pl.DataFrame(
        [
            _setting_of(row)
            for row in tables.boundaries
            if row.last_ok is not None or row.first_oom is not None
        ],
        schema={name: tables.summary.schema[name] for name in _SETTING},
        orient="row",
    )
    order = dict.fromkeys(("model", "dtype", axes.DEVICE_KIND, *_SETTING))
    rows = pl.concat([tables.summary.select(_SETTING), searched]).unique().sort(*order, nulls_last=True)
    rows = rows.filter(pl.col(axes.DEVICE_KIND).is_not_null())
    found, called = [], names_of(tables.attempts)
    for values in rows.iter_rows():
        setting = dict(zip(_SETTING, values, strict=True))
        summary, attempts = equal_rows(tables.summary, setting), equal_rows(measured, setting)
        boundaries = [row for row in tables.boundaries if _setting_of(row) == values]
        found.append(
            Setting(
                values=setting,
                names=called,
                total_bytes=totals.get(setting[axes.DEVICE_KIND]),
                conditions=_conditions(summary, attempts) or [_searched(boundaries, summary, attempts)],
                boundaries=boundaries,
                probes=equal_rows(probes, setting),
            )
        )
    return found


def _setting_of(row: BoundaryRow) -> tuple[Any, ...]:
    return (*(row.identity[name] for name in axes.names(Role.SETTING)), row.device_kind)


def variant_of(row: BoundaryRow) -> Variant:
    return Variant(tuple(row.identity[name] for name in _VARIANT))


def tell_apart(variant: Variant, others: Iterable[Variant]) -> str:
    """The mode, what is unusual about it, and whatever else tells it from the others of that mode."""
    same = [other for other in others if other.mode == variant.mode]
    drafts = short_names(other.draft for other in same if other.draft is not None)
    told = [
        drafts.get(value, value) if axis.name == "draft" else axis.caption(value)
        for axis in axes.axes(Role.POLICY, Role.DECODER)
        if (value := variant[axis.name]) is not None
        and value != axis.usual
        and (not axis.of_mode or len({other[axis.name] for other in same}) > 1)
    ]
    return " · ".join([variant.mode, *told])


def mode_words(names: Names, values: Mapping[str, Any]) -> str:
    """The mode with its draft, and what is unusual about it: of a row that stands alone."""
    draft = [names.target(values["draft"])] if values["draft"] else []
    return " · ".join([values["mode"], *draft, *axes.unusual(values, Role.POLICY, Role.DECODER)])


def _conditions(rows: pl.DataFrame, attempts: pl.DataFrame) -> list[Condition]:
    sizes = rows.group_by(_CONDITION).len().sort(*_CONDITION).iter_rows(named=True)
    ordered = [{name: size[name] for name in _CONDITION} for size in sorted(sizes, key=_least_usual_last)]
    return [
        Condition(values=values, summary=equal_rows(rows, values), attempts=equal_rows(attempts, values))
        for values in ordered
    ]


def _least_usual_last(size: Mapping[str, Any]) -> tuple[int, int]:
    """Most rows first; of equally many, the condition that takes fewest words."""
    return -size["len"], len(axes.unusual(size, Role.CONDITION))


def _searched(rows: Sequence[BoundaryRow], summary: pl.DataFrame, attempts: pl.DataFrame) -> Condition:
    """That of searches alone: nothing was measured under it."""
    row = min(rows, key=lambda row: row.phase != "decode")
    values = {name: row.identity[name] for name in _CONDITION}
    values["prompt_tokens"] = row.prompt_tokens or 0
    return Condition(values=values, summary=summary, attempts=attempts)


def equal_rows(frame: pl.DataFrame, values: Mapping[str, object]) -> pl.DataFrame:
    """The rows whose columns have these values; None equals None."""
    return frame.filter(
        pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in values.items())
    )
