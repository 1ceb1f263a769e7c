"""`--set key.path=value`: keys of a sweep file from the command line."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from orchestrator import strict_yaml
from orchestrator.spec_error import SpecError
from orchestrator.spec_faults import KeyPath
from orchestrator.strict_yaml import Surprise


def apply_overrides(raw: dict[Any, Any], overrides: Sequence[str]) -> list[KeyPath]:
    """Put each `key.path=yaml` into `raw`. Return the paths that were set. Raises `SpecError`."""
    names = [override.partition("=")[0] for override in overrides]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"--set {name}: given twice: keep one")
    return [_apply(raw, override) for override in overrides]


def _apply(raw: dict[Any, Any], override: str) -> KeyPath:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise SpecError(
            f"--set {override!r}: write key=value, e.g. --set lengths=[500,1000] or --set streaming.window=256"
        )
    value = _value(name, text)
    *parents, last = re.sub(r"\[(\d+)\]", r".\1", name).split(".")
    node: Any = raw
    path: list[str | int] = []
    for key in parents:
        if isinstance(node, list):
            node = _list_item(node, key, name)
            path.append(int(key))
            continue
        path.append(key)
        node = node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise SpecError(f"--set {name}: {key!r} holds {node!r}, which has no keys")
    if isinstance(node, list):
        _list_item(node, last, name)
        node[int(last)] = value
        return (*path, int(last))
    node[last] = value
    return (*path, last)


def _value(name: str, text: str) -> Any:
    try:
        return strict_yaml.load(text)
    except Surprise as surprise:
        raise SpecError(f"--set {name}: {str(surprise).removeprefix('line 1: ')}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise SpecError(f"--set {name}: {text!r} is not YAML: {' '.join(str(error).split())}") from None


def _list_item(node: list[Any], key: str, name: str) -> Any:
    if not key.isdecimal() or int(key) >= len(node):
        raise SpecError(f"--set {name}: {key!r} is not one of the {len(node)} items (0 to {len(node) - 1})")
    return node[int(key)]
