"""How far a mode is of use: memory is one end of it, and speed, energy, perplexity and retrieval are others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import polars as pl

from orchestrator.report import formats
from orchestrator.report.speed_claims import Speed
from orchestrator.spec import FloorsSpec, SweepSpec
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.quality import QualityBoundary, quality_boundaries
from orchestrator.tables.write import Tables

_SAME = ("model", "dtype", "engine", "mode")
#: Of a task, what its modes have in common.
_TASK = ("model", "dtype", "engine", "task")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else than memory a run knows of its modes. `effective`: the table `effective_length`."""

    quality: Sequence[QualityBoundary]
    effective: pl.DataFrame
    floors: FloorsSpec

    @classmethod
    def of(cls, tables: Tables, spec: SweepSpec | None) -> "Evidence":
        """`spec`: None where nobody knows what was asked for."""
        floors = FloorsSpec() if spec is None else spec.floors
        return cls(quality_boundaries(tables.quality), tables.effective_length, floors)


class Weighable(Protocol):
    """A mode on a card. `tokens`: the longest length that passed."""

    @property
    def row(self) -> BoundaryRow: ...

    @property
    def tokens(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def speed(self) -> Speed: ...


_Extent = TypeVar("_Extent", bound=Weighable)


@dataclass(frozen=True, slots=True)
class Use:
    """`tokens`: up to which a mode is of use. `ended_by`: `memory`, `perplexity` or `retrieval`."""

    tokens: int
    ended_by: str


def weigh(extents: Sequence[_Extent], evidence: Evidence) -> tuple[list[_Extent], str]:
    """Return those of `extents` that are of use the furthest, and a sentence for each other boundary than memory that decided."""
    fast, said = _good_enough(extents, evidence.floors)
    uses = [use_of(extent, evidence) for extent in fast]
    best = max(use.tokens for use in uses)
    kept = [extent for extent, use in zip(fast, uses, strict=True) if use.tokens >= best]
    furthest_kept = max(extent.tokens for extent in kept)
    for ended_by, words in (
        ("perplexity", "its perplexity stays sane only up to"),
        ("retrieval", "finds what it read only up to"),
    ):
        outdone = [
            f"{extent.name} passes {extent.tokens:,} tokens, but "
            + (f"{words} {use.tokens:,}" if use.tokens else "finds nothing of what it read")
            for extent, use in zip(fast, uses, strict=True)
            if use.ended_by == ended_by and use.tokens < best and extent.tokens >= furthest_kept
        ]
        if outdone:
            said += f" {ended_by.capitalize()} decided: {'; '.join(outdone)}."
    return kept, said


def use_of(extent: Weighable, evidence: Evidence) -> Use:
    """The first of the ends that are known. Retrieval: of the task that fails first; 0 where the mode found nothing at
    all. A task of which no mode finds anything tells nothing of the modes."""
    ends = [Use(extent.tokens, "memory")]
    ends += [
        Use(row.departs_at, "perplexity")
        for row in evidence.quality
        if row.departs_at is not None and _is_of(extent.row, row.identity)
    ]
    ends += [
        Use(row["effective_length"] or 0, "retrieval")
        for row in _doable(evidence.effective).iter_rows(named=True)
        if not row["censored"] and _is_of(extent.row, row)
    ]
    return min(ends, key=lambda end: end.tokens)


def _doable(effective: pl.DataFrame) -> pl.DataFrame:
    return effective.filter(pl.col("effective_length").is_not_null().any().over(_TASK))


def _is_of(row: BoundaryRow, other: Any) -> bool:
    return all(row.identity[name] == other[name] for name in _SAME)


def _good_enough(extents: Sequence[_Extent], floors: FloorsSpec) -> tuple[list[_Extent], str]:
    """Those that are within both bounds, as far as is known; all where none is left."""
    fast, said = _within(
        extents, "Speed", [_too_slow(extent, floors) for extent in extents],
        "below", f"the floor of {floors.tokens_per_s or 0:g} tokens/s",
    )  # fmt: skip
    kept, more = _within(
        fast, "Energy", [_too_costly(extent, floors) for extent in fast],
        "above", f"the bound of {floors.energy_per_token_j or 0:g} J per token",
    )  # fmt: skip
    return kept, said + more


def _within(
    extents: Sequence[_Extent], what: str, beyond: Sequence[str | None], side: str, bound: str
) -> tuple[list[_Extent], str]:
    """`beyond`: of each extent, its value where that breaks the bound."""
    kept = [extent for extent, value in zip(extents, beyond, strict=True) if value is None]
    if len(kept) == len(extents):
        return kept, ""
    if not kept:
        return list(extents), f" No mode keeps to {bound}."
    told = [
        f"{extent.name} ({value})" for extent, value in zip(extents, beyond, strict=True) if value is not None
    ]
    return (
        kept,
        f" {what} decided: {formats.listing(told)} {'is' if len(told) == 1 else 'are'} {side} {bound}.",
    )


def _too_slow(extent: Weighable, floors: FloorsSpec) -> str | None:
    known = extent.speed.tokens_per_s
    return f"{known:,.1f}" if floors.tokens_per_s is not None and 0 < known < floors.tokens_per_s else None


def _too_costly(extent: Weighable, floors: FloorsSpec) -> str | None:
    known, most = extent.speed.joules_per_token, floors.energy_per_token_j
    return f"{known:.3g}" if known is not None and most is not None and known > most else None
