"""What torch's allocator held and could not use when memory ran out, and whether other settings move the boundary."""

from collections.abc import Sequence

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.explain.breakdown import allocator_moves
from orchestrator.report import formats
from orchestrator.report.document import Bullets, Code, Paragraph, Section, Span, Table
from orchestrator.report.setting import Setting, mode_words
from orchestrator.tables.boundary_rows import BoundaryRow
from workers.allocator import DEFAULT, EXPANDABLE, settings_text

#: A predicted move of less than this share of the boundary is within what predictions miss by.
_MOVES = 0.01
_COLUMNS = ["on", "mode", "condition", "ran out at", "allocated", "reserved", "device"]
_COSTS = ["fragmentation", "of the card", "tokens"]


def fragmentation(settings: Sequence[Setting], *, is_default: bool) -> Section | None:
    """None where no run on a card ran out of memory. `is_default`: the environment sets nothing of torch's allocator."""
    rows = [(setting, row) for setting in settings for row in setting.boundaries]
    lines = [_line(setting, row) for setting, row in rows if row.fragmentation_bytes is not None]
    if not lines:
        return None
    about = Paragraph([
        "Of runs at the first value that ran out of memory, at that moment. Allocated: live tensors. Reserved: what torch's "
        "allocator held for them. Fragmentation: their difference, free pieces of which none was large enough; whole free "
        "segments had been given back before. Tokens: fragmentation divided by the cache's growth per token of the config, "
        "so the most that it can have cost. Device: the peak, with context and kernels."
    ])  # fmt: skip
    columns = [*_COLUMNS, *_COSTS]
    table = Table(columns, lines, "", frozenset(columns[3:]), group="on")
    told = [
        words
        for setting, row in rows
        if (words := _reading(setting, row, setting.boundaries, is_default=is_default))
    ]
    return Section("What fragmentation costs", [about, table, *([Bullets(told)] if told else [])])


def tokens(row: BoundaryRow) -> int | None:
    """How many tokens of every sequence the fragmented bytes would hold at most; None in constant memory."""
    if row.fragmentation_bytes is None or not row.analytic_bytes_per_token or row.axis != "length":
        return None
    return row.fragmentation_bytes // row.analytic_bytes_per_token


def _line(setting: Setting, row: BoundaryRow) -> list[str]:
    assert row.fragmentation_bytes is not None
    return [
        setting.words(engine=True),
        mode_words(setting.names, row.identity),
        _condition(row),
        formats.count(row.first_oom),
        *(formats.size(size) for size in (row.allocated_bytes, row.reserved_bytes, row.device_bytes)),
        formats.size(row.fragmentation_bytes),
        f"{row.fragmentation_bytes / row.limit_bytes * 100:.1f} %",
        formats.count(tokens(row)),
    ]


def _condition(row: BoundaryRow) -> str:
    words = [row.phase.replace("_", " "), *axes.unusual(row.identity, Role.CONDITION)]
    return ", ".join(words)


def _reading(
    setting: Setting, row: BoundaryRow, others: Sequence[BoundaryRow], *, is_default: bool
) -> Sequence[Span]:
    """What a row at torch's own settings says of expandable segments; nothing where they are set already."""
    if row.identity["allocator"] != DEFAULT or not is_default:
        return []
    twin = next((other for other in others if _is_expandable_twin(row, other)), None)
    told: list[Span] = []
    if row.is_fragmented:
        told.append(_cost(row))
    told += _predicted(row)
    if twin is not None and row.last_ok is not None and twin.last_ok is not None:
        told.append(f" measured: {allocator_moves(row.last_ok, twin.last_ok)}.")
    elif row.is_fragmented:
        told += [" To measure it: ", Code(f"allocator: [{DEFAULT}, {EXPANDABLE}]"), " in the sweep file."]
    if not told:
        return []
    return [
        f"{mode_words(setting.names, row.identity)} on {setting.words(engine=True)}, {_condition(row)}:",
        *told,
    ]


def _cost(row: BoundaryRow) -> str:
    assert row.fragmentation_bytes is not None
    count = tokens(row)
    room = f", room for at most {count:,} tokens" if count is not None else ""
    share = row.fragmentation_bytes / row.limit_bytes
    return f" fragmentation held {formats.size(row.fragmentation_bytes)} ({share * 100:.0f} % of the card){room}."


def _predicted(row: BoundaryRow) -> list[Span]:
    before, after = row.predicted, row.predicted_expandable
    if not before or after is None or abs(after - before) < _MOVES * before:
        return []
    change = formats.percent((after / before - 1) * 100)
    return [
        " predicted: ",
        Code("expandable_segments"),
        f" moves the boundary from {before:,} to {after:,} ({change}).",
    ]


def _is_expandable_twin(row: BoundaryRow, other: BoundaryRow) -> bool:
    if settings_text(other.identity["allocator"]) != settings_text(EXPANDABLE):
        return False
    return dict(other.identity) | {"allocator": DEFAULT} == dict(row.identity) and (
        (other.device_kind, other.phase, other.axis) == (row.device_kind, row.phase, row.axis)
    )
