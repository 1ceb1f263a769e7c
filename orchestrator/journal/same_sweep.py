"""Whether a sweep file is that of a run folder, or one that asks for more of the same."""

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.spec import SweepSpec, dump_spec
from orchestrator.strict_yaml import load

#: Keys whose values are tried one by one: more of them add cells, and leave the others as they are.
EXTENSIBLE = (
    *("models", "modes", "engines", "lengths", "prompt_tokens", "batch_sizes"),
    *("repetition_penalty", "budgets", "repeats"),
)
#: Keys that say how much to use, how long to wait and how often to try: another value changes no cell.
LIMITS = (
    *("max_devices", "device_timeout_s", "time_limit_s", "stall_timeout_s", "max_attempts", "max_crashes"),
    "memory_snapshot",
)


def differences(old: SweepSpec, new: SweepSpec, words: tuple[str, str] = ("there", "now")) -> list[str]:
    """Return what differs, one text for each key: `key: value there, value now`. Lists show only what differs. `words`:
    what the two are called."""
    before, now = _written(old), _written(new)
    return [_difference(key, before[key], now[key], words) for key in before if before[key] != now[key]]


def is_extension(old: SweepSpec, new: SweepSpec) -> bool:
    """Whether `new` has all cells of `old`, and differs in nothing that would change them."""
    before, now = _written(old), _written(new)
    return all(
        key in LIMITS or before[key] == now[key] or (key in EXTENSIBLE and _has_all(before[key], now[key]))
        for key in before
    )


def _written(spec: SweepSpec) -> dict[str, Any]:
    """As the sweep file has it, every key with its value."""
    written: dict[str, Any] = load(dump_spec(spec))
    return written


def _has_all(before: Any, now: Any) -> bool:
    if isinstance(before, list):
        return all(item in now for item in before)
    if isinstance(before, str) or isinstance(now, str):
        return False
    return bool(now >= before)


def _difference(key: str, before: Any, now: Any, words: tuple[str, str]) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [name for name in before if before[name] != now.get(name)]
        return ", ".join(_difference(f"{key}.{name}", before[name], now.get(name), words) for name in keys)
    if isinstance(before, list) and isinstance(now, list):
        gone, new = _without(before, now), _without(now, before)
        found = [
            f"{_text(items)} only {when}" for items, when in zip((gone, new), words, strict=True) if items
        ]
        if found:
            return f"{key}: {', '.join(found)}"
    return f"{key}: {_text(before)} {words[0]}, {_text(now)} {words[1]}"


def _without(items: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    return [item for item in items if item not in others]


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."
