"""What is wrong with a sweep file, in words: all of it at once, each with its place, its key, its value and the remedy."""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

#: Keys from the top of the sweep file down to a value; numbers count the items of a list.
KeyPath = tuple[str | int, ...]
Place = Callable[[KeyPath], str]


def explain(error: ValidationError, groups: Mapping[str, Collection[str]], place: Place) -> str:
    """Return one line for each key that is wrong. `groups`: the keys below each key that has some, "" for the top.

    `place`: where a value was written.
    """
    keys = {key for group in groups.values() for key in group}
    lines: dict[KeyPath, list[str]] = {}
    for fault in error.errors(include_url=False):
        path = _path(fault, keys)
        if path and path in lines:
            continue  # the other kinds of value that this one is not either
        lines[path] = lines.get(path, []) + _texts(fault, path, groups)
    return "\n".join(
        f"{place(path or _key_of(text, keys))}{text}" for path, texts in lines.items() for text in texts
    )


def nearest(name: str, names: Collection[str]) -> str:
    """Return what a person should read who wrote `name` instead of one of `names`."""
    found = difflib.get_close_matches(name, names, 1, 0.0)[0]
    return f"the nearest is {found!r} (of {', '.join(names)})"


def _path(fault: Any, keys: Collection[str]) -> KeyPath:
    """Without what pydantic adds of its own: the names of the kinds that it tried."""
    unknown = fault["type"] == "extra_forbidden"
    return tuple(part for part in fault["loc"] if isinstance(part, int) or part in keys or unknown)


def _texts(fault: Any, path: KeyPath, groups: Mapping[str, Collection[str]]) -> list[str]:
    name = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        return [f"unknown key {name!r}; {_where_else(path, groups)}"]
    if fault["type"] == "missing":
        return [f"{name}: missing; add `{name}:`"]
    told = fault["msg"].removeprefix("Value error, ")
    if not path:
        return list(told.splitlines())  # of the sweep as a whole: each line names its key
    if fault["type"] == "invalid_key":
        return [f"unknown key {name}; keys are words"]
    value = fault["input"]
    if (
        isinstance(value, dict) and fault["type"] == "value_error"
    ):  # of a group of keys, which are named in it
        return [f"{name}: {told}"]
    return [f"{name}: {_short(value)} is not valid: {_in_words(fault, told)}"]


def _where_else(path: KeyPath, groups: Mapping[str, Collection[str]]) -> str:
    above = next((part for part in reversed(path[:-1]) if isinstance(part, str)), "")
    key = str(path[-1])
    if elsewhere := [group for group, keys in groups.items() if key in keys]:
        return (
            f"it belongs below {elsewhere[0]!r}"
            if elsewhere[0]
            else "it belongs to the top, below no other key"
        )
    close = difflib.get_close_matches(key, groups.get(above, groups[""]), 1, 0.0)
    return f"the nearest valid key is {close[0]!r}"


_NUMBERS = {
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
}
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "one text; quote it where YAML takes it for something else",
    "dict": "keys with values, such as {key: value}",
    "model": "keys with values, such as {key: value}; of models also a name",
    "list": "a list, such as [one, two]",
    "finite": "a number, not infinite",
}


def _in_words(fault: Any, told: str) -> str:
    """pydantic's message for a person who does not know pydantic."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "literal_error" and isinstance(fault["input"], str):
        return nearest(fault["input"], re.findall(r"'([^']*)'", context["expected"]))
    if kind in _NUMBERS:
        return _NUMBERS[kind].format(**context)
    if kind == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-', beginning with a letter or a digit, at most 100"
    if kind in ("too_short", "string_too_short"):
        return "at least one"
    return _KINDS.get(kind.partition("_")[0], told)


def _key_of(text: str, keys: Collection[str]) -> KeyPath:
    """The key that a line on the sweep as a whole begins with."""
    first = text.partition(":")[0]
    return (first,) if first in keys else ()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def placed(lines: Mapping[KeyPath, int], overridden: Sequence[KeyPath], name: str) -> Place:
    """Return a function from a key to where it was written: `FILE, line N: ` or, of what --set gave, nothing more than
    `--set `. `lines`: of the keys in the file; of one that is not there, the nearest above counts."""

    def place(path: KeyPath) -> str:
        if any(path[: len(given)] == given for given in overridden):
            return "--set "
        above = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in lines), None)
        line = f"line {lines[above]}" if above is not None else ""
        where = ", ".join(filter(None, (name, line)))
        return f"{where}: " if where else ""

    return place
