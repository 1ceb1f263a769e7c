"""The `boundaries` table: boundary rows, typed as columns."""

from collections.abc import Sequence

import polars as pl

from orchestrator import axes
from orchestrator.journal.columns import column_type
from orchestrator.tables.boundary_rows import IDENTITY, BoundaryRow, other_columns

#: What a reader looks for first.
_FIRST = (
    *(
        "model",
        "mode",
        "engine",
        "device_kind",
        "budget_bytes",
        "batch_size",
        "phase",
        "last_ok",
        "first_oom",
    ),
    *("resolution", "confirmed_ok", "confirmed_oom", "censored", "predicted", "error_pct", "bytes_per_token"),
    *("analytic_bytes_per_token", "constant_bytes", "constant_analytic_bytes"),
)


def boundary_frame(rows: Sequence[BoundaryRow]) -> pl.DataFrame:
    """A column for every axis of a boundary's identity, and for every other field of `BoundaryRow`."""
    hints = {axis.name: axis.hint for axis in axes.axes(*IDENTITY)}
    others = other_columns()
    schema = {name: column_type(hint) for name, hint in hints.items()} | others
    records = [{**row.identity, **{name: getattr(row, name) for name in others}} for row in rows]
    return pl.DataFrame(records, schema=schema).select(*_FIRST, pl.exclude(*_FIRST))
