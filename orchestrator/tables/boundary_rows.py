"""The content of the `boundaries` table: each question of a sweep beside what its attempts answered."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, cast, get_type_hints

from orchestrator import axes
from orchestrator.boundary.question import Question, questions
from orchestrator.boundary.replay import replay
from orchestrator.boundary.search import Bracket
from orchestrator.boundary.start import fit_to_device, search_for
from orchestrator.explain.fragmentation import NOTABLE, memory_at_end
from orchestrator.explain.measured_law import measured_law
from orchestrator.journal.columns import column_type
from orchestrator.predict.cache_law import cache_law
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import (
    PredictedBoundary,
    PredictedBy,
    UnknownWeightsError,
    predicted_largest,
)
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.spec import SweepSpec
from workers.allocator import DEFAULT, EXPANDABLE
from workers.attempt import Attempt, Device
from workers.cell import Cell
from workers.outcome import Outcome

#: The axes that say what a boundary is of. What grows, or is no part of the question, is None.
IDENTITY = axes.IDENTITY


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryRow:
    """One row of the `boundaries` table (docs/tables.md), and how it was found.

    `identity`: the value of each axis that sets boundaries apart, by name; None where it grows.
    Units of `last_ok`, `first_oom`, `predicted`, `resolution`: tokens, or sequences on the axis `batch_size`.
    `searched`: by probes of a `boundary:` section; else read off the measured cells, where `first_oom` is the
    shortest length asked that ran out, `first_oom_index` the earliest token at which one did, and
    `resolution` their distance. `non_monotone`: values that contradict the bracket. `refuted`: values whose
    synthetic probe ended otherwise than the real ones. `prefill_reach`: the last
    position was read by chunked prefill, not token by token; then `first_oom_index` is that of the measured
    cells, which go token by token.
    `predicted_by`: None where nothing was predicted. `device_seconds`: of the `probes`, from lease to the end of the process.
    `allocated_bytes` ... `fragmentation_bytes`: as in `MemoryAtEnd`, of runs at `first_oom`. `predicted_expandable`: as
    `predicted`, with expandable segments; only where the fragmentation is notable and a rehearsal can tell.
    """

    identity: Mapping[str, Any]
    device_kind: str
    phase: str
    last_ok: int | None
    first_oom: int | None
    resolution: int | None
    confirmed_ok: int
    confirmed_oom: int
    censored: bool
    predicted: int | None
    error_pct: float | None
    bytes_per_token: float | None
    bytes_per_token_ci_low: float | None
    bytes_per_token_ci_high: float | None
    analytic_bytes_per_token: int | None
    constant_bytes: float | None
    constant_bytes_ci_low: float | None
    constant_bytes_ci_high: float | None
    constant_analytic_bytes: int | None
    axis: str
    searched: bool
    probes: int
    first_oom_index: int | None
    non_monotone: tuple[int, ...]
    refuted: tuple[int, ...]
    prefill_reach: bool
    device_total_bytes: int
    max_positions: int | None
    predicted_by: PredictedBy | None
    device_seconds: float
    allocated_bytes: int | None
    reserved_bytes: int | None
    device_bytes: int | None
    fragmentation_bytes: int | None
    predicted_expandable: int | None

    @property
    def is_open(self) -> bool:
        """The search has not ended, and has met no failure yet."""
        return self.first_oom is None and not self.censored

    @property
    def is_wide(self) -> bool:
        """The search has met a failure, and was stopped before its bracket came down to its resolution."""
        if not self.searched or self.first_oom is None or self.resolution is None:
            return False
        return self.first_oom - (self.last_ok or 0) > self.resolution

    @property
    def has_only_failed(self) -> bool:
        """The search was stopped before it met a pass: shorter ones may pass."""
        return self.is_wide and self.last_ok is None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells boundaries apart within a run."""
        return (*self.identity.values(), self.device_kind, self.phase, self.axis)

    @property
    def model(self) -> str:
        return cast(str, self.identity["model"])

    @property
    def draft(self) -> str | None:
        return cast(str | None, self.identity["draft"])

    @property
    def mode(self) -> str:
        return cast(str, self.identity["mode"])

    @property
    def engine(self) -> str:
        return cast(str, self.identity["engine"])

    @property
    def budget_bytes(self) -> int | None:
        """None: the whole device."""
        return cast(int | None, self.identity["budget_bytes"])

    @property
    def batch_size(self) -> int:
        return cast(int, self.identity["batch_size"])

    @property
    def limit_bytes(self) -> int:
        """Of the (emulated) card."""
        return self.device_total_bytes if self.budget_bytes is None else self.budget_bytes

    @property
    def is_fragmented(self) -> bool:
        """Whether fragmentation was notable when memory ran out."""
        return self.fragmentation_bytes is not None and self.fragmentation_bytes > NOTABLE * self.limit_bytes

    @property
    def prompt_tokens(self) -> int | None:
        return cast(int | None, self.identity["prompt_tokens"])

    @property
    def length(self) -> int | None:
        return cast(int | None, self.identity["length"])


def other_columns() -> dict[str, Any]:
    """Name -> column type of what a row says beside its identity."""
    found = {name: column_type(hint) for name, hint in get_type_hints(BoundaryRow).items()}
    return {name: dtype for name, dtype in found.items() if name != "identity"}


def boundaries(spec: SweepSpec, attempts: Iterable[Attempt]) -> list[BoundaryRow]:
    """Every question of the sweep on every device kind that ran, then the measured cells without a question.

    Attempts may come in any order and without samples; only the last one of a cell on a kind counts. A
    bracket whose search has not ended is as far as it came. Reads model configs, no weights; what cannot be
    read is None.
    """
    models = ModelShapes()
    rows: list[BoundaryRow] = []
    for _, group in sorted(_by_kind(attempts).items()):
        devices = [attempt.device for attempt in group if attempt.device is not None]
        device = min(devices, key=lambda device: device.total_bytes)
        contexts = [attempt.context_bytes for attempt in group if attempt.context_bytes is not None]
        profile = DeviceProfile.of(device, median_low(contexts) if contexts else None)
        answers = [_answer(question, group, device, profile, models) for question in questions(spec)]
        measured = {row.key: row for row in _measured(group, device, profile, models)}
        for answer in answers:
            beside = measured.pop(answer.key, None)
            if answer.prefill_reach:  # a probe's own index counts within its last few tokens
                index = None if beside is None else beside.first_oom_index
                answer = dataclasses.replace(answer, first_oom_index=index)
            rows.append(answer)
        rows += measured.values()
    return rows


def _by_kind(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    last: dict[tuple[str, Cell], Attempt] = {}
    for attempt in attempts:
        if attempt.device is None:
            continue
        key = attempt.device.kind, attempt.cell
        if key not in last or attempt.attempt >= last[key].attempt:
            last[key] = attempt
    kinds: dict[str, list[Attempt]] = {}
    for (kind, _), attempt in last.items():
        kinds.setdefault(kind, []).append(attempt)
    return kinds


def _answer(
    question: Question,
    attempts: Sequence[Attempt],
    device: Device,
    profile: DeviceProfile,
    models: ModelShapes,
) -> BoundaryRow:
    shapes = models.of(question.cell)
    if shapes.target is not None:
        question = fit_to_device(question, shapes.target, shapes.draft, DeviceProfile.of(device))
    foretold = _foretold(lambda value: question.probe(value, 0), shapes, profile)
    search = search_for(question, foretold.value if foretold is not None else None)
    mine, _ = replay(question, search, attempts)
    bracket = search.bracket
    prefilling = question.phase.startswith("prefill")
    real = [attempt for attempt in mine if not attempt.cell.synthetic]
    at_end = [attempt for attempt in real if question.value(attempt.cell) == bracket.first_oom]
    row = _row(question.cell, device, shapes, mine, at_end, bracket, foretold)
    row = _with_expandable(row, lambda value: question.probe(value, 0), shapes, profile)
    fixed = {"length": question.cell.length if question.axis == "batch_size" else None}
    if prefilling:
        fixed["prompt_tokens"] = None
    return dataclasses.replace(
        row,
        identity={**row.identity, **fixed},
        phase=question.phase,
        resolution=question.resolution,
        error_pct=bracket_error_pct(row.predicted, bracket.last_ok, bracket.first_oom),
        axis=question.axis,
        searched=True,
        prefill_reach=question.by_prompt,
    )


def _measured(
    attempts: Sequence[Attempt], device: Device, profile: DeviceProfile, models: ModelShapes
) -> list[BoundaryRow]:
    groups: dict[tuple[object, ...], list[Attempt]] = {}
    for attempt in attempts:
        cell = attempt.cell
        if cell.purpose == "measure" and cell.workload_spec.measures_speed:
            groups.setdefault(tuple(_identity(cell).values()), []).append(attempt)
    rows = []
    for group in groups.values():
        cell = dataclasses.replace(group[0].cell, length=1)
        bracket = _bracket(group)
        if bracket.last_ok is None and bracket.first_oom is None:
            continue
        shapes = models.of(cell)
        at = functools.partial(_of_length, cell)
        foretold = _foretold(at, shapes, profile)
        at_end = [attempt for attempt in group if attempt.cell.length == bracket.first_oom]
        row = _row(cell, device, shapes, group, at_end, bracket, foretold)
        rows.append(_with_expandable(row, at, shapes, profile))
    return rows


def _of_length(cell: Cell, length: int) -> Cell:
    return dataclasses.replace(cell, length=length)


def _foretold(
    at: Callable[[int], Cell], shapes: CellShapes, profile: DeviceProfile
) -> PredictedBoundary | None:
    """None where the config does not tell."""
    if shapes.target is None:
        return None
    try:
        return predicted_largest(at, shapes.target, shapes.draft, profile)
    except UnknownWeightsError:
        return None


def _with_expandable(
    row: BoundaryRow, at: Callable[[int], Cell], shapes: CellShapes, profile: DeviceProfile
) -> BoundaryRow:
    """The formulas know nothing of the allocator's settings."""
    if not (row.is_fragmented and row.predicted_by == "rehearsal" and row.identity["allocator"] == DEFAULT):
        return row
    other = _foretold(lambda value: dataclasses.replace(at(value), allocator=EXPANDABLE), shapes, profile)
    if other is None or other.predicted_by != "rehearsal":
        return row
    return dataclasses.replace(row, predicted_expandable=other.value)


def _bracket(group: Sequence[Attempt]) -> Bracket:
    """Of cells that were not chosen to find one: the lengths asked for, and how they ended."""
    passed = [attempt.cell.length for attempt in group if attempt.outcome is Outcome.OK]
    failed = [attempt.cell.length for attempt in group if attempt.outcome.is_device_oom]
    first_oom = min(failed, default=None)
    last_ok = max((length for length in passed if first_oom is None or length < first_oom), default=None)
    return Bracket(
        last_ok=last_ok,
        first_oom=first_oom,
        confirmed_ok=passed.count(last_ok) if last_ok else 0,
        confirmed_oom=failed.count(first_oom) if first_oom else 0,
        censored=first_oom is None,
        non_monotone=tuple(sorted({length for length in passed if first_oom and length > first_oom})),
    )


def _row(
    cell: Cell,
    device: Device,
    shapes: CellShapes,
    attempts: Sequence[Attempt],
    at_end: Sequence[Attempt],
    bracket: Bracket,
    foretold: PredictedBoundary | None,
) -> BoundaryRow:
    """Build the row from measured cells. `_answer` then replaces the fields that a search determines exactly."""
    first_index = _first_index(attempts)
    largest = foretold.value if foretold is not None else None
    end = memory_at_end(at_end)
    law = None if shapes.target is None else cache_law(cell, shapes)
    return BoundaryRow(
        identity=_identity(cell),
        device_kind=device.kind,
        phase="decode",
        last_ok=bracket.last_ok,
        first_oom=bracket.first_oom,
        resolution=None if bracket.first_oom is None else bracket.first_oom - (bracket.last_ok or 0),
        confirmed_ok=bracket.confirmed_ok,
        confirmed_oom=bracket.confirmed_oom,
        censored=bracket.censored,
        predicted=largest,
        error_pct=error_pct(largest, first_index),
        **_measured_law(attempts, shapes),
        analytic_bytes_per_token=None if law is None else law.bytes_per_token,
        constant_analytic_bytes=None if law is None else law.constant_bytes,
        axis="length",
        searched=False,
        probes=len(attempts),
        first_oom_index=first_index,
        non_monotone=bracket.non_monotone,
        refuted=bracket.refuted,
        prefill_reach=False,
        device_total_bytes=device.total_bytes,
        max_positions=None if shapes.target is None else shapes.target.max_positions,
        predicted_by=foretold.predicted_by if foretold is not None else None,
        device_seconds=sum(attempt.duration_s for attempt in attempts),
        allocated_bytes=end.allocated_bytes,
        reserved_bytes=end.reserved_bytes,
        device_bytes=end.device_bytes,
        fragmentation_bytes=end.fragmentation_bytes,
        predicted_expandable=None,
    )


def error_pct(predicted: int | None, last_ok: int | None) -> float | None:
    """How far the prediction lies above the measured value, in per cent of it; None where one of them is
    missing.
    """
    return (predicted - last_ok) / last_ok * 100 if predicted is not None and last_ok else None


def bracket_error_pct(predicted: int | None, last_ok: int | None, first_oom: int | None) -> float | None:
    """How far the prediction lies outside of the bracket, in per cent of its nearer end; 0 within it. None where one of
    the three is missing.
    """
    if predicted is None or last_ok is None or first_oom is None:
        return None
    if last_ok <= predicted <= first_oom:
        return 0.0
    return error_pct(predicted, last_ok if predicted < last_ok else first_oom)


def _identity(cell: Cell) -> dict[str, Any]:
    """Of a boundary over lengths."""
    return {**axes.read(cell, *IDENTITY), "length": None}


def _first_index(attempts: Iterable[Attempt]) -> int | None:
    indices = [a.failure.oom_token_index for a in attempts if a.failure is not None]
    return min((index for index in indices if index is not None), default=None)


def _measured_law(attempts: Sequence[Attempt], shapes: CellShapes) -> dict[str, float | None]:
    """The columns of what was counted: both numbers of the cache's law, with their intervals."""
    windows = [w for shape in shapes if shape is not None for w in shape.windows if w is not None]
    found = measured_law(attempts, beyond=max(windows, default=0))
    columns: dict[str, float | None] = {}
    for name in ("bytes_per_token", "constant_bytes"):
        told = None if found is None else getattr(found, name)
        columns |= {
            name: None if told is None else told.value,
            f"{name}_ci_low": None if told is None else told.low,
            f"{name}_ci_high": None if told is None else told.high,
        }
    return columns
