"""Measured bytes per token beside the analytic value: where they part, the ratio usually names the
culprit.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.explain.slope import theil_sen
from orchestrator.predict.memory import bytes_per_token
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.attempt import Attempt
from workers.cell import Cell

#: kv_cache: counted from the cache's tensors. allocated: torch. device: NVML, or a CPU process's data.
Source = Literal["kv_cache", "allocated", "device"]

#: Ratios within this of a tell-tale count as it.
_CLOSE = 0.04
#: In a mode of constant memory, growth above this share of what a full cache would take is a leak. Token ids
#: and mask grow by 32 bytes in transformers, which is below it for every model of note.
_LEAK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """`measured`, `analytic`: bytes per token of all sequences together. `ratio` None: the analytic value is
    0.
    """

    cell_id: str
    source: Source
    measured: float
    analytic: int
    ratio: float | None
    points: int
    diagnosis: str
    agrees: bool


def reconcile(
    attempt: Attempt, shape: ModelShape, draft_shape: ModelShape | None = None
) -> list[Reconciliation]:
    """One entry for each source of which the attempt kept at least two points: its steps, and samples if it
    has any.
    """
    cell = attempt.cell
    analytic = bytes_per_token(cell, shape, draft_shape)
    found = []
    for source, points in _points(attempt).items():
        measured = theil_sen(points)
        if measured is None:
            continue
        diagnosis, agrees = diagnose(cell, shape, source, measured, analytic)
        found.append(
            Reconciliation(
                cell_id=cell.cell_id,
                source=source,
                measured=measured,
                analytic=analytic,
                ratio=measured / analytic if analytic else None,
                points=len(points),
                diagnosis=diagnosis,
                agrees=agrees,
            )
        )
    return found


def diagnose(
    cell: Cell, shape: ModelShape, source: Source, measured: float, analytic: int
) -> tuple[str, bool]:
    """(what the slope says, whether it is as the config implies)."""
    if not cell.mode_spec.policy.grows or analytic == 0:
        unbounded = shape.kv_bytes_per_token(cell.model.dtype) * cell.batch_size
        if measured > _LEAK * unbounded:
            share = measured / unbounded
            return f"a leak: {share:.0%} of a full cache's growth in a mode of constant memory", False
        return "constant, as it should be", True
    ratio = measured / analytic
    if _near(ratio, 1.0):
        return "as the config implies", True
    return next(
        (text for value, text in _tell_tales(cell, shape, source) if _near(ratio, value)), _odd(ratio)
    ), False


def _tell_tales(cell: Cell, shape: ModelShape, source: Source) -> list[tuple[float, str]]:
    tales: list[tuple[float, str]] = []
    repeated = shape.heads / shape.kv_heads
    if repeated > 1:
        tales.append(
            (repeated, f"key and value heads are expanded {repeated:g} times before they are cached")
        )
    if dtype_bytes(cell.model.dtype) == 2:
        tales += [
            (1.5, "keys (or values) are kept in float32"),
            (2.0, "the cache is kept in float32"),
        ]
    if source != "kv_cache":
        tales.append((2.0, "the cache is alive twice: concatenation copies that are not given back"))
    return tales


def _odd(ratio: float) -> str:
    if ratio < 1:
        return f"{ratio:.2f} of what the config implies: something evicts, or a window is in effect"
    return f"{ratio:.2f} times what the config implies: unexplained"


def _near(ratio: float, value: float) -> bool:
    return abs(ratio / value - 1) <= _CLOSE


def _points(attempt: Attempt) -> dict[Source, list[tuple[float, float]]]:
    steps = attempt.steps
    points: dict[Source, list[tuple[float, float]]] = {
        "kv_cache": [(s.token_index, s.kv_cache_bytes) for s in steps if s.kv_cache_bytes is not None],
        "allocated": [(s.token_index, s.allocated_bytes) for s in steps if s.allocated_bytes is not None],
        "device": [],
    }
    times = [sample.t_s for sample in attempt.samples]
    for step in steps:
        used = _at(attempt, times, step.t_s)
        if used is not None:
            points["device"].append((step.token_index, used))
    return points


def _at(attempt: Attempt, times: Sequence[float], t_s: float) -> int | None:
    """The meter's value at a time: that of the last change before it."""
    index = bisect.bisect_right(times, t_s) - 1
    return attempt.samples[index].device_used_bytes if index >= 0 else None
