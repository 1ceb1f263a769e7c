"""Column types from type hints: a field of a dataclass is a column of its name."""

import functools
from enum import Enum
from types import EllipsisType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import polars as pl

_TYPES: dict[Any, Any] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
    bytes: pl.Binary,
}


def column_type(hint: Any) -> Any:
    """The Polars type for values of `hint`; None where it is not a value of one column (a nested dataclass).

    `X | None` is as `X`, an enumeration or a literal of texts is text, `tuple[X, ...]` is a list.
    """
    options = [option for option in get_args(hint) if option not in (NoneType, Ellipsis, EllipsisType)]
    if hint in _TYPES:
        return _TYPES[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return pl.String
    if get_origin(hint) is Literal:
        return column_type(type(options[0]))
    if not options:
        return None
    inner = column_type(options[0])
    return inner if inner is None or Ellipsis not in get_args(hint) else pl.List(inner)


@functools.cache
def columns_of(kind: type) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass that are single values, in their order."""
    found = {name: column_type(hint) for name, hint in get_type_hints(kind).items()}
    return {
        name: dtype for name, dtype in found.items() if dtype is not None and dtype.base_type() != pl.List
    }
