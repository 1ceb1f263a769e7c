"""What several devices bring: how much further a text goes, and how much faster, against one device."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator import axes
from orchestrator.axes import VARIANT, Role
from orchestrator.report import formats
from orchestrator.report.document import Paragraph, Section, Table
from orchestrator.report.sections.cards import longest
from orchestrator.report.setting import Setting, mode_words
from workers.outcome import Outcome

_DEVICES = "devices_per_cell"
_KEY = tuple(name for name in axes.names(Role.CONDITION, *VARIANT) if name != _DEVICES)
_COLUMNS = [
    "on",
    "mode",
    "devices",
    "memory ends after",
    "at length",
    "tokens/s",
    "against one",
    "efficiency",
    "peak",
]


def devices(settings: Sequence[Setting]) -> Section | None:
    """None where every cell ran on one device."""
    lines = [line for setting in settings for line in _lines(setting)]
    if not lines:
        return None
    about = Paragraph([
        "Several devices of one node hold a model together. Budget, boundary and peak are those of each device: memory ends "
        "where the first of them runs out, and the peak is that of the fullest. Efficiency: the speed against one device, over "
        "the number of devices. Speeds are at the longest length that passed on every number of devices."
    ])  # fmt: skip
    return Section(
        "What several devices bring", [about, Table(_COLUMNS, lines, "", frozenset(_COLUMNS[2:]), group="on")]
    )


def _lines(setting: Setting) -> Iterator[list[str]]:
    """One for each mode and number of devices, of modes that ran on several."""
    rows = [row for condition in setting.conditions for row in condition.summary.iter_rows(named=True)]
    ends = {
        (*_key(row.identity), row.identity[_DEVICES]): row
        for row in setting.boundaries
        if row.axis == "length"
    }
    keys = dict.fromkeys([*map(_key, rows), *(end[:-1] for end in ends)])
    for key in keys:
        here = [row for row in rows if _key(row) == key]
        counts = sorted({row[_DEVICES] for row in here} | {end[-1] for end in ends if end[:-1] == key})
        if counts == [1]:
            continue
        length = _common_length(here, counts)
        for count in counts:
            speed = next((row for row in here if row[_DEVICES] == count and row["length"] == length), None)
            end = ends.get((*key, count))
            identity = speed or (end.identity if end is not None else here[0])
            yield _line(setting, identity, count, formats.NOTHING if end is None else longest(end), speed)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _common_length(rows: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> int | None:
    passed = [
        {row["length"] for row in rows if row[_DEVICES] == count and row["outcome"] == Outcome.OK}
        for count in counts
    ]
    everywhere = set.intersection(*passed) or set.union(*passed)
    return max(everywhere, default=None)


def _line(
    setting: Setting, identity: Mapping[str, Any], count: int, end: str, speed: Mapping[str, Any] | None
) -> list[str]:
    efficiency = speed["scaling_efficiency"] if speed is not None else None
    return [
        setting.words(engine=True),
        mode_words(setting.names, dict(identity)),
        f"{count}",
        end,
        formats.count(speed["length"]) if speed is not None else formats.NOTHING,
        formats.number(speed["tokens_per_s_median"]) if speed is not None else formats.NOTHING,
        formats.times(None if efficiency is None else efficiency * count),
        formats.NOTHING if efficiency is None else f"{efficiency:.0%}",
        formats.size(speed["peak_device_bytes_max"]) if speed is not None else formats.NOTHING,
    ]
