"""When two measurements differ: a boundary, a speed, a peak."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.tables.boundary_rows import BoundaryRow

#: A peak that differs by less says nothing: the meter's steps and the allocator's blocks are that coarse.
_MEMORY_NOISE = 0.01


class Quantity(StrEnum):
    BOUNDARY = "boundary"
    SPEED = "speed"
    MEMORY = "memory"

    @property
    def is_better_larger(self) -> bool:
        return self is not Quantity.MEMORY


@dataclass(frozen=True, slots=True)
class Difference:
    """`differs`: beyond the noise; None: cannot be told. `change`: of the second against the first, 0.05 = 5 % more; None
    where there is no number. `words`: as a table says it."""

    differs: bool | None
    change: float | None
    words: str


def boundaries_differ(one: BoundaryRow, other: BoundaryRow) -> Difference:
    """Disjoint brackets. A side that never ran out ends nowhere: where it came less far, nothing can be told."""
    low, high = sorted((one, other), key=lambda row: row.last_ok or 0)
    change = (other.last_ok or 0) / one.last_ok - 1 if one.last_ok else None
    if low.first_oom is None and low.last_ok != high.last_ok:
        return Difference(None, change, "cannot tell: it did not run out")
    if low.first_oom is None or (high.last_ok or 0) < low.first_oom:
        return Difference(False, change, "no")
    if one.last_ok and other.last_ok and one.first_oom and other.first_oom:
        return Difference(True, change, f"yes: {(change or 0) * 100:+.1f} %")
    return Difference(True, change, "yes")


def speeds_differ(one: dict[str, Any], other: dict[str, Any]) -> Difference:
    """Disjoint 95 % intervals. A second side that ended otherwise, without a speed, has lost all of it."""
    if one["tokens_per_s_median"] is None or other["tokens_per_s_median"] is None:
        if one["outcome"] == other["outcome"]:
            return Difference(False, None, "no")
        is_lost = one["tokens_per_s_median"] is not None
        return Difference(True, -1.0 if is_lost else None, "yes: the outcome")
    change = other["tokens_per_s_median"] / one["tokens_per_s_median"] - 1
    ratio = f"{1 + change:.2f}×"
    if one["tokens_per_s_ci_low"] is None or other["tokens_per_s_ci_low"] is None:
        return Difference(None, change, f"cannot tell ({ratio}): one repeat")
    apart = (
        one["tokens_per_s_ci_high"] < other["tokens_per_s_ci_low"]
        or other["tokens_per_s_ci_high"] < one["tokens_per_s_ci_low"]
    )
    return Difference(apart, change, f"yes: {ratio}" if apart else f"no ({ratio})")


def peaks_differ(one: dict[str, Any], other: dict[str, Any]) -> Difference:
    """Ranges over the repeats that are disjoint and lie more than 1 % apart."""
    if one["peak_device_bytes_max"] is None or other["peak_device_bytes_max"] is None:
        return Difference(None, None, "cannot tell")
    low, high = sorted((one, other), key=lambda row: row["peak_device_bytes_max"])
    change = other["peak_device_bytes_max"] / max(one["peak_device_bytes_max"], 1) - 1
    gap = high["peak_device_bytes_min"] - low["peak_device_bytes_max"]
    if gap > _MEMORY_NOISE * low["peak_device_bytes_max"]:
        return Difference(True, change, f"yes: {change * 100:+.1f} %")
    return Difference(False, change, "no")
