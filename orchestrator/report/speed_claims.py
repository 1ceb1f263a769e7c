"""What may be said of two speeds: only what their repeats and the rooflines of their engine carry. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: From this many repeats on an interval is worth the name; below, only a ratio from `ONE_RUN` on is a difference.
ENOUGH = 3
ONE_RUN = 1.5
#: Modes whose fractions of their rooflines differ by more are two engines more than two modes.
_LIKE = 0.1


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one mode at one length: the median of `repeats` runs, its 95 % interval, and the fraction of
    its roofline. None: not known. `noisy`: one of them ran on a noisy machine, and the interval is wider by it.
    """

    name: str
    tokens_per_s: float
    repeats: int
    low: float | None = None
    high: float | None = None
    roofline: float | None = None
    noisy: bool = False
    joules_per_token: float | None = None


def speed_of(name: str, row: Mapping[str, Any]) -> Speed:
    """`row`: of the `summary` table, with a speed."""
    return Speed(
        name,
        row["tokens_per_s_median"],
        row["n_ok"],
        row["tokens_per_s_ci_low"],
        row["tokens_per_s_ci_high"],
        row["roofline_fraction_median"],
        bool(row["noisy"]),
        row["energy_per_token_j_median"],
    )


def is_faster(one: Speed, other: Speed) -> bool:
    """Whether `one` is faster beyond the noise: apart by their intervals, or by half and more where a mode has fewer
    than three repeats, all of them on a quiet machine.
    """
    if one.tokens_per_s <= other.tokens_per_s:
        return False
    if min(one.repeats, other.repeats) < ENOUGH or one.low is None or other.high is None:
        return not (one.noisy or other.noisy) and one.tokens_per_s >= ONE_RUN * other.tokens_per_s
    return one.low > other.high


def is_carried(one: Speed, other: Speed) -> bool:
    """Whether the ratio of the two may stand as a number: three repeats of each, or half and more; on a noisy machine
    only where they are apart."""
    if not (one.noisy or other.noisy) and min(one.repeats, other.repeats) >= ENOUGH:
        return True
    return one.tokens_per_s == other.tokens_per_s or is_faster(one, other) or is_faster(other, one)


def is_untold(one: Speed, other: Speed) -> bool:
    """Whether more repeats may tell the two apart."""
    apart = is_faster(one, other) or is_faster(other, one)
    return not apart and min(one.repeats, other.repeats) < ENOUGH


def is_engine(one: Speed, other: Speed) -> bool:
    """Whether the difference of the two is the engine's: they use unlike parts of their device's bandwidth."""
    known = one.roofline is not None and other.roofline is not None
    return known and abs((one.roofline or 0.0) - (other.roofline or 0.0)) > _LIKE


def allowed(one: Speed, other: Speed) -> float | None:
    """How many times faster `one` would be where both ran at their rooflines: what the bytes allow."""
    if not one.roofline or not other.roofline:
        return None
    return (one.tokens_per_s / one.roofline) / (other.tokens_per_s / other.roofline)


def claim(one: Speed, other: Speed) -> str:
    """Say what `one` gives against `other`, as half a sentence. Empty where a speed is missing."""
    if not one.tokens_per_s or not other.tokens_per_s:
        return ""
    ratio = one.tokens_per_s / other.tokens_per_s
    if is_untold(one, other):
        where = " on a noisy machine" if one.noisy or other.noisy else ""
        return f"too few runs{where} to tell whether it is faster than {other.name}: set “repeats: {ENOUGH}”"
    if not is_faster(one, other) and not is_faster(other, one):
        noise = "noise of this machine" if one.noisy or other.noisy else "noise"
        return f"it is neither faster nor slower than {other.name} beyond the {noise}"
    said = f"it is {ratio:.2f}× as fast as {other.name}"
    if one.repeats == other.repeats == 1:
        said += ", one run of each"
    bytes_allow = allowed(one, other)
    if is_engine(one, other) and bytes_allow is not None:
        return (
            f"{said}, which is the engine's doing and not the mode's: they reach {one.roofline:.2f} and "
            f"{other.roofline:.2f} of their rooflines, and the bytes allow {bytes_allow:.2f}×"
        )
    return said
