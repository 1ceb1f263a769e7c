"""The pictures of boundaries: by card, and the frontier of length and number of sequences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report import formats
from orchestrator.report.document import Picture
from orchestrator.report.pictures.curves import ChartAxis, Curve, Mark, Panel, draw
from orchestrator.report.pictures.theme import picture
from orchestrator.report.setting import Setting, Variant, tell_apart, variant_of
from orchestrator.tables.boundary_rows import BoundaryRow
from workers.units import GiB, MiB

#: From this ratio of the largest value to the smallest on, a linear axis hides the small ones.
_WIDE = 50
_COUNTED = {
    "decode": "new tokens",
    "decode_after_prefill": "new tokens after a long prompt",
    "prefill": "prompt tokens in one pass",
    "prefill_chunked": "prompt tokens in chunks",
}
_RING = " A ring: the prediction."


@dataclass(frozen=True, slots=True)
class _End:
    """The end of memory of one variant: a point of a curve. `curve`: what tells the curve from others of its variant.
    `high`: the upper end of the bracket at `x`. `predicted`: where it was predicted; None: not drawn."""

    variant: Variant
    curve: tuple[str, ...]
    x: float
    y: float
    high: float | None
    predicted: tuple[float, float] | None


def boundary_by_card(settings: Sequence[Setting]) -> list[Picture]:
    """The largest value that passed by the memory of the card, for each model and question that two cards have answered.

    Budgets of one kind of device make a picture; so do kinds of device that ran under one budget each. Largest batches of several
    lengths are a frontier's. Where memory ended nowhere there is none.
    """
    groups: dict[tuple[str, str], dict[str, list[_End]]] = {}
    for setting, row in _answered(settings):
        if setting.limit_bytes is not None and setting.main.asks(row) and not _is_of_frontier(setting, row):
            counted = _COUNTED[row.phase] if row.axis == "length" else f"sequences of {row.length:,} tokens"
            kinds = groups.setdefault((setting.called, counted), {})
            kinds.setdefault(setting.device_kind, []).append(_on_card(setting, row, setting.limit_bytes))
    pictures = []
    for (called, counted), kinds in groups.items():
        if not any(end.high for ends in kinds.values() for end in ends):
            continue
        several = {kind: ends for kind, ends in kinds.items() if len({end.x for end in ends}) > 1}
        pictures += [_by_card(called, kind, counted, ends) for kind, ends in several.items()]
        alone = [end for kind, ends in kinds.items() if kind not in several for end in ends]
        if len({end.x for end in alone}) > 1:
            pictures.append(_by_card(called, "several kinds of device", counted, alone))
    return pictures


def _is_of_frontier(setting: Setting, row: BoundaryRow) -> bool:
    return row.axis == "batch_size" and any(
        other.axis == "batch_size" and other.length != row.length for other in setting.boundaries
    )


def _on_card(setting: Setting, row: BoundaryRow, limit_bytes: int) -> _End:
    end = row.last_ok or 0
    predicted = None if row.first_oom is None or row.predicted is None else (limit_bytes, row.predicted)
    return _End(variant_of(row), (setting.engine,), limit_bytes, end, row.first_oom, predicted)


def _by_card(called: str, kind: str, counted: str, ends: Sequence[_End]) -> Picture:
    unit, name = (GiB, "GiB") if max(end.x for end in ends) >= 2 * GiB else (MiB, "MiB")
    panel = _panel(
        f"Where memory ends, by card: {called} on {kind}",
        ChartAxis(f"memory of the card ({name})", unit=name),
        ChartAxis(counted),
        [_scaled(end, unit) for end in ends],
    )
    caption = (
        f"The largest number of {counted} that passed under each budget, with the bracket as a bar; without one, memory "
        f"had not run out.{_RING if panel.marks else ''}"
    )
    return picture(f"boundary-by-card-{called}-{kind}-{counted}", draw(panel), caption, panel.title)


def _scaled(end: _End, unit: int) -> _End:
    predicted = None if end.predicted is None else (end.predicted[0] / unit, end.predicted[1])
    return _End(end.variant, end.curve, end.x / unit, end.y, end.high, predicted)


def frontiers(settings: Sequence[Setting]) -> list[Picture]:
    """How long a text may be by how many sequences run at a time, for each model and kind of device where a sweep has tried
    several of both. A curve for each mode and budget.
    """
    groups: dict[tuple[str, str, str], list[_End]] = {}
    for setting, row in _answered(settings):
        if setting.main.asks(row, but=["batch_size"]):
            key = setting.called, setting.device_kind, _COUNTED[row.phase]
            groups.setdefault(key, []).append(_of_frontier(setting, row))
    pictures = []
    for (called, kind, counted), ends in groups.items():
        widest = max(_by_curve(ends).values(), key=lambda curve: len({end.x for end in curve}))
        if len({(end.x, end.y) for end in widest}) > 1 and len({end.x for end in ends}) > 1:
            pictures.append(_frontier(called, kind, counted, ends))
    return pictures


def _of_frontier(setting: Setting, row: BoundaryRow) -> _End:
    curve = formats.card(setting.budget_bytes, setting.total_bytes), setting.engine
    ended = row.first_oom is not None and row.predicted is not None
    if row.axis == "batch_size":
        length = float(row.length or 0)
        predicted = (float(row.predicted or 0), length) if ended else None
        return _End(variant_of(row), curve, row.last_ok or 0, length, None, predicted)
    batch = float(row.identity["batch_size"])
    predicted = (batch, float(row.predicted or 0)) if ended else None
    return _End(variant_of(row), curve, batch, row.last_ok or 0, row.first_oom, predicted)


def _frontier(called: str, kind: str, counted: str, ends: Sequence[_End]) -> Picture:
    panel = _panel(
        f"Length by number of sequences: {called} on {kind}",
        ChartAxis("sequences at a time", unit="sequences"),
        ChartAxis(f"{counted} of each sequence"),
        ends,
    )
    caption = f"Below and left of a curve a run fits.{_RING if panel.marks else ''}"
    return picture(f"frontier-{called}-{kind}-{counted}", draw(panel), caption, panel.title)


def _answered(settings: Sequence[Setting]) -> Iterator[tuple[Setting, BoundaryRow]]:
    """Rows with a value that passed, of searches that were not stopped before their end. Where there were searches, what
    measured cells say beside them is no end."""
    for setting in settings:
        searched = any(row.searched for row in setting.boundaries)
        for row in setting.boundaries:
            if row.last_ok is not None and not row.is_open and not row.is_wide and row.searched >= searched:
                yield setting, row


def _panel(title: str, x: ChartAxis, y: ChartAxis, ends: Sequence[_End]) -> Panel:
    by_curve = _by_curve(ends)
    variants = [variant for variant, _ in by_curve]
    told = _what_differs(curve for _, curve in by_curve)
    curves, marks = [], []
    for (variant, curve), points in by_curve.items():
        name = ", ".join([tell_apart(variant, variants), *(curve[place] for place in told)])
        points = sorted(points, key=lambda end: (end.x, -end.y))
        curves.append(
            Curve(
                name, variant.colour, variant.dash, [end.x for end in points], [end.y for end in points],
                low=[end.y for end in points], high=[end.high for end in points],
            )
        )  # fmt: skip
        marks += [
            Mark(variant.colour, *end.predicted, f"{name}: predicted {y.told(end.predicted[1], 6)} at {x.told(end.predicted[0], 6)}")
            for end in points if end.predicted is not None
        ]  # fmt: skip
    values = [end.y for end in ends if end.y > 0]
    is_wide = bool(values) and len(values) == len(ends) and max(values) / min(values) >= _WIDE
    y = ChartAxis(y.title, log=is_wide, format=",~s" if is_wide else y.format)
    return Panel(title, x, y, curves, marks=marks, points=True)


def _by_curve(ends: Sequence[_End]) -> Mapping[tuple[Variant, tuple[str, ...]], list[_End]]:
    found: dict[tuple[Variant, tuple[str, ...]], list[_End]] = {}
    for end in sorted(ends, key=lambda end: (end.variant.order, end.curve)):
        found.setdefault((end.variant, end.curve), []).append(end)
    return found


def _what_differs(curves: Iterable[tuple[str, ...]]) -> list[int]:
    """The places at which the curves' words are not all the same."""
    return [place for place, words in enumerate(zip(*curves, strict=True)) if len(set(words)) > 1]
