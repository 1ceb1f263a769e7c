"""The `boundaries` table: rows as the boundary search hands them out, typed as columns."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import polars as pl

from orchestrator.tables.boundary_rows import BoundaryRow

_TYPES: dict[Any, Any] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}


def boundary_frame(rows: Sequence[BoundaryRow]) -> pl.DataFrame:
    """Columns in the order in which `BoundaryRow` declares them."""
    return pl.DataFrame(
        [dataclasses.asdict(row) for row in rows],
        schema={name: _dtype(hint) for name, hint in get_type_hints(BoundaryRow).items()},
    )


def _dtype(hint: Any) -> Any:
    if hint in _TYPES:
        return _TYPES[hint]
    first = next(option for option in get_args(hint) if option is not type(None))
    return pl.List(_TYPES[first]) if Ellipsis in get_args(hint) else _TYPES[first]
