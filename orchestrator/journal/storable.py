"""What a column cannot hold, taken out of a row: a model, a file or an error said it, and it must not cost the sweep."""

from collections.abc import Mapping
from typing import Any

import polars as pl

_RANGES = {pl.Int32: 2**31, pl.Int64: 2**63}
_PLAIN = {pl.Float64: float, pl.Boolean: bool, pl.String: str, pl.Binary: bytes}


def storable(row: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`row` with null for each value that its column cannot hold, and what was left out: `column: value`.

    Text that is not Unicode (lone surrogates) keeps its place, with `?` for what is wrong in it.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, dtype in schema.items():
        value = row[name]
        kept[name], bad = _list(value, dtype.inner) if isinstance(dtype, pl.List) else _one(value, dtype)
        if bad:
            left_out.append(f"{name}: {unicode(repr(value)[:60])}")
    return kept, left_out


def unicode(text: str) -> str:
    """`text` with `?` for each lone surrogate: what cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _list(values: Any, inner: Any) -> tuple[Any, bool]:
    if values is None:
        return None, False
    pairs = [_one(value, inner) for value in values]
    return [value for value, _ in pairs], any(bad for _, bad in pairs)


def _one(value: Any, dtype: Any) -> tuple[Any, bool]:
    """What of `value` can be stored, and whether it is another value than that."""
    kind = next((kind for kind in _RANGES if dtype == kind), None)
    if value is None:
        return None, False
    if kind is not None:
        fits = type(value) is int and -_RANGES[kind] <= value < _RANGES[kind]
        return (value, False) if fits else (None, True)
    plain = next(python for kind, python in _PLAIN.items() if dtype == kind)
    if plain is str and isinstance(value, str):
        return unicode(value), False
    if plain is float and type(value) is int and abs(value) < 2**63:
        return float(value), False
    return (value, False) if isinstance(value, plain) else (None, True)
