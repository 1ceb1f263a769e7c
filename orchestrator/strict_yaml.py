"""YAML without its surprises: what is read is what was written, or is refused with its line.

Text that YAML 1.1 takes for something else stays text: `yes`, `no`, `on`, `off`, dates, `1:30` (which would be 90).
Refused: a key given twice, of which the second would win; a number that starts with 0, which would be octal; text
that no file can hold.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_DEEPEST = 4  # no key of a sweep file lies deeper
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_TAG = "tag:yaml.org,2002:"
_AS_TEXT = {_TAG + name for name in ("int", "float", "bool", "timestamp")}


class Surprise(yaml.YAMLError):
    """One line: where, what, remedy."""


def load(text: str) -> Any:
    """Plain values of one YAML document. Raises `yaml.YAMLError`, ValueError, RecursionError, OverflowError."""
    return yaml.load(text, _Loader)


def lines(text: str) -> dict[tuple[str | int, ...], int]:
    """Where each key and each item of a list is written: from its path to its line, counted from 1."""
    found: dict[tuple[str | int, ...], int] = {}
    root = yaml.compose(text, _Loader)
    if root is not None:
        _note_lines(root, (), found)
    return found


def _note_lines(
    node: yaml.Node, path: tuple[str | int, ...], found: dict[tuple[str | int, ...], int]
) -> None:
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(index, item, item) for index, item in enumerate(node.value)]
    else:
        return
    for name, at, value in entries:
        if (*path, name) not in found:  # an alias may lead round in a circle
            found[*path, name] = at.start_mark.line + 1
            if len(path) < _DEEPEST:
                _note_lines(value, (*path, name), found)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if tag not in _AS_TEXT]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        given: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in given:
                first = given[key.value]
                where = f" (first in line {first})" if first != line else ""
                raise Surprise(f"line {line}: key {key.value!r} is given twice{where}: keep one")
            given[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if _OCTAL.fullmatch(node.value):
            bare = node.value.lstrip("+-0_") or "0"
            raise Surprise(
                f"line {node.start_mark.line + 1}: {node.value} starts with 0, which YAML reads as octal "
                f"({super().construct_yaml_int(node)}): write {bare}, or quote it if it is a name"
            )
        return super().construct_yaml_int(node)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        if "\0" in text or re.search("[\ud800-\udfff]", text):
            raise Surprise(
                f"line {node.start_mark.line + 1}: {text!r} holds a character that no name can hold"
            )
        return text


for _tag, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(f"(?:{_pattern.pattern})$"), list(_first))
for _tag in ("int", "str"):
    _Loader.add_constructor(_TAG + _tag, getattr(_Loader, f"construct_yaml_{_tag}"))
