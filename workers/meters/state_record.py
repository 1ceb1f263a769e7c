"""Turns what was read of a device's state during a run into the figures of that run. Pure.

Energy comes from the device's counter at the edges of a phase. Where the phase is shorter than ten periods of the
counter it is the integral of power samples, and the column of its source says so.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from workers.attempt import Phase
from workers.machine_state import MachineState
from workers.meters.machine_load import MachineTimes, load_between
from workers.meters.state import Counters, StateReading

#: Of the counter: a phase that is shorter is measured by power samples. The edges are then off by a tenth at most.
_PERIODS = 10
_MAX_READINGS = 4096
POWER_SAMPLES = "power_samples"


@dataclass(frozen=True, slots=True)
class StateEdge:
    """The beginning of a phase, `at_s` by `time.monotonic()`, and what the counters said then."""

    at_s: float
    counters: Counters
    times: MachineTimes


class StateRecord:
    """Keeps the edges and the readings of one run. A long one keeps every second reading, every fourth, ..."""

    def __init__(self) -> None:
        self.edges: dict[Phase, StateEdge] = {}
        self.readings: list[tuple[float, StateReading]] = []
        self.power_max_w: float | None = None
        self.temperature_max_c: float | None = None
        self._every, self._seen = 1, 0
        self._throttle: dict[str, int] = {}
        self._asked = self._throttled = 0

    def add(self, at_s: float, reading: StateReading) -> None:
        self.power_max_w = _larger(self.power_max_w, reading.power_w)
        self.temperature_max_c = _larger(self.temperature_max_c, reading.temperature_c)
        if reading.throttle is not None:
            self._asked += 1
            self._throttled += bool(reading.throttle)
            for reason in reading.throttle:
                self._throttle[reason] = self._throttle.get(reason, 0) + 1
        self._seen += 1
        if self._seen % self._every == 0:
            self.readings.append((at_s, reading))
        if len(self.readings) > _MAX_READINGS:
            self.readings = self.readings[::2]
            self._every *= 2

    @property
    def throttle_reasons(self) -> str | None:
        if not self._asked:
            return None
        return ",".join(sorted(self._throttle, key=lambda reason: -self._throttle[reason])) or "none"

    @property
    def throttled_pct(self) -> float | None:
        return 100 * self._throttled / self._asked if self._asked else None


@dataclass(frozen=True, slots=True)
class Energy:
    joules: float | None = None
    source: str | None = None


def energy_between(
    before: StateEdge,
    after: StateEdge,
    readings: Sequence[tuple[float, StateReading]],
    *,
    source: str,
    period_s: float,
) -> Energy:
    """Return the energy of the device between two edges. `source`, `period_s`: name and period of its counter."""
    seconds = after.at_s - before.at_s
    first, last = before.counters.energy_j, after.counters.energy_j
    if first is not None and last is not None and seconds >= _PERIODS * period_s:
        return Energy(last - first, source)
    power = [(at_s, r.power_w) for at_s, r in readings if r.power_w is not None]
    mean = _mean_power(power, before.at_s, after.at_s)
    return Energy() if mean is None or seconds <= 0 else Energy(mean * seconds, POWER_SAMPLES)


def machine_state(
    record: StateRecord,
    *,
    energy_source: str,
    energy_period_s: float,
    not_offered: Mapping[str, str],
    new_tokens: int,
) -> MachineState | None:
    """Return the state during a run. None where it did not come to its prefill. `new_tokens`: of all sequences."""
    begun, decode, ended = (record.edges.get(p) for p in (Phase.PREFILL, Phase.DECODE, Phase.DONE))
    if begun is None or ended is None:
        return None

    def energy(before: StateEdge, after: StateEdge) -> Energy:
        return energy_between(before, after, record.readings, source=energy_source, period_s=energy_period_s)

    prefill = energy(begun, decode or ended)
    decoded = energy(decode, ended) if decode is not None else Energy()
    total = prefill.joules
    if decode is not None:
        total = _sum(prefill.joules, decoded.joules)
    seconds = ended.at_s - begun.at_s
    return MachineState(
        energy_j=total,
        energy_prefill_j=prefill.joules,
        energy_decode_j=decoded.joules,
        energy_per_token_j=decoded.joules / new_tokens if decoded.joules is not None and new_tokens else None,
        energy_prefill_source=prefill.source,
        energy_decode_source=decoded.source,
        power_mean_w=total / seconds if total is not None and seconds > 0 else None,
        power_max_w=record.power_max_w,
        sm_clock_median_mhz=_median(r.sm_clock_mhz for _, r in record.readings),
        memory_clock_median_mhz=_median(r.memory_clock_mhz for _, r in record.readings),
        cpu_clock_median_mhz=_median(r.cpu_clock_mhz for _, r in record.readings),
        temperature_max_c=record.temperature_max_c,
        throttle_reasons=record.throttle_reasons,
        throttled_pct=record.throttled_pct,
        pcie_replays=_difference(begun.counters.pcie_replays, ended.counters.pcie_replays),
        ecc_errors=_difference(begun.counters.ecc_errors, ended.counters.ecc_errors),
        not_offered="; ".join(f"{name}: {why}" for name, why in not_offered.items()) or None,
        **asdict(load_between(begun.times, ended.times)),
    )


def _mean_power(power: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """By trapezoids between the readings of the span; what lies beyond the first and the last one has their power."""
    inside = [(at_s, watts) for at_s, watts in power if start_s <= at_s <= end_s]
    if not inside:
        return None
    if len(inside) == 1 or end_s <= start_s:
        return statistics.mean(watts for _, watts in inside)
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    joules = first * (first_s - start_s) + last * (end_s - last_s)
    joules += sum((b_s - a_s) * (a + b) / 2 for (a_s, a), (b_s, b) in pairwise(inside))
    return joules / (end_s - start_s)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _larger(a: float | None, b: float | None) -> float | None:
    return max((v for v in (a, b) if v is not None), default=None)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
