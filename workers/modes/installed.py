"""Policies and decoders that other packages bring, by entry points.

They are looked for when a mode is first asked for: a package that brings one imports `workers.modes` itself.
A worker may run where the package's code is but not its metadata, as in a folder that a job brings. So the driver hands on
what it found, in the environment variable `OOMLINE_ENTRY_POINTS`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

POLICIES_GROUP, DECODERS_GROUP = "oomline.policies", "oomline.decoders"
VARIABLE = "OOMLINE_ENTRY_POINTS"

_Value = TypeVar("_Value")


class BrokenEntryPoint(Exception):
    """An entry point cannot be used. One line: which, and why."""


class Registry(Mapping[str, _Value], Generic[_Value]):
    """A mapping by name that is filled when it is first read."""

    def __init__(self, fill: Callable[[], Mapping[str, _Value]]) -> None:
        self._fill = fill

    @cached_property
    def _values(self) -> Mapping[str, _Value]:
        return self._fill()

    def __getitem__(self, name: str) -> _Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def with_installed(own: Iterable[_Value], group: str, kind: type[_Value]) -> Registry[_Value]:
    """Return `own` and what the entry points of `group` name, each a value of `kind`, by its `name`.

    Reading it raises `BrokenEntryPoint`: one that cannot be imported, is of another kind, or has the name of another.
    """
    return Registry(lambda: _by_name(own, group, kind))


def _by_name(own: Iterable[_Value], group: str, kind: type[_Value]) -> dict[str, _Value]:
    found = {value.name: value for value in own}  # type: ignore[attr-defined]
    for point in _points(group):
        where = f"entry point {point.name} = {point.value} of {group}"
        try:
            value = point.load()
        except Exception as error:
            raise BrokenEntryPoint(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(value, kind):
            raise BrokenEntryPoint(f"{where} is a {type(value).__name__}, not a {kind.__name__}")
        name = value.name  # type: ignore[attr-defined]
        if name in found:
            raise BrokenEntryPoint(f"{where} has the name {name!r}, which is taken")
        found[name] = value
    return found


def carried() -> Mapping[str, str]:
    """Return the environment variable that tells a worker of this process's entry points; {} where there are none."""
    points = [
        [group, point.name, point.value]
        for group in (POLICIES_GROUP, DECODERS_GROUP)
        for point in _points(group)
    ]
    return {VARIABLE: json.dumps(points)} if points else {}


def _points(group: str) -> list[EntryPoint]:
    """Each value once, in the order of the names: installed ones, and those that a driver has handed on."""
    handed_on = [
        EntryPoint(name, value, of)
        for of, name, value in json.loads(os.environ.get(VARIABLE, "[]"))
        if of == group
    ]
    by_value = {point.value: point for point in (*handed_on, *entry_points(group=group))}
    return sorted(by_value.values(), key=lambda point: point.name)
