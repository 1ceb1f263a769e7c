"""Samples a meter 200 times a second, in one thread for each device for its whole life.

Every change of value and a heartbeat are kept. Memory is a step function, so this is lossless and small. Only a record
of more than `MAX_SAMPLES` changes is thinned: its resolution in time is halved and the maxima are kept.
"""

import math
import threading
import time
from array import array
from dataclasses import dataclass

from workers.meters import Meter, MeterReading

#: 50 kB pickled: an attempt of 8,000 tokens stays below the 100 kB that Ray hands back inline.
MAX_SAMPLES = 1536
#: Smaller changes are a process's noise (a driver counts device memory in 2 MiB). They are kept only at a maximum.
GRAIN_BYTES = 65536
HEARTBEAT_S = 1.0
INTERVAL_S = 1 / 200


@dataclass(frozen=True, slots=True)
class TimedReading:
    t_s: float  # time.monotonic()
    device_bytes: int | None
    process_bytes: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """What was read between two moments. The intervals are those achieved between readings."""

    readings: tuple[TimedReading, ...]
    interval_p50_s: float | None
    interval_p99_s: float | None


class Trace:
    """Keeps the changes of one pair of values over time, at most `max_samples` of them."""

    def __init__(self, max_samples: int = MAX_SAMPLES) -> None:
        self._max_samples = max_samples
        self._readings: list[TimedReading] = []
        self._pending: tuple[float, MeterReading] | None = None  # the latest, not kept: the end of a plateau
        self._kept_s, self._kept = -math.inf, MeterReading(None, None)
        self._device_peak = self._process_peak = -1
        self._bucket_s = 0.0

    def add(self, t_s: float, reading: MeterReading) -> None:
        if not self._is_news(t_s, *reading):
            self._pending = (t_s, reading)
            return
        if self._pending is not None:
            before_s, before = self._pending
            self._readings.append(TimedReading(before_s, *before))  # so that a step stays a step when drawn
            self._pending = None
        self._kept_s, self._kept = t_s, reading
        self._readings.append(TimedReading(t_s, *reading))
        if len(self._readings) > self._max_samples:
            self._thin()

    def between(self, start_s: float, end_s: float) -> tuple[TimedReading, ...]:
        readings = list(self._readings)
        if self._pending is not None:
            readings.append(TimedReading(self._pending[0], *self._pending[1]))
        return tuple(r for r in readings if start_s <= r.t_s <= end_s)

    def _is_news(self, t_s: float, device: int | None, process: int | None) -> bool:
        """Runs 200 times a second beside the run that is measured: as little as possible."""
        is_peak = False
        if device is not None and device > self._device_peak:
            self._device_peak, is_peak = device, True
        if process is not None and process > self._process_peak:
            self._process_peak, is_peak = process, True
        return (
            is_peak
            or t_s - self._kept_s >= HEARTBEAT_S
            or _moved(self._kept.device_bytes, device)
            or _moved(self._kept.process_bytes, process)
        )

    def _thin(self) -> None:
        """Keep one reading per bucket of time, its maxima. Buckets widen until half of the samples are free."""
        span = self._readings[-1].t_s - self._readings[0].t_s
        self._bucket_s = max(self._bucket_s, span / self._max_samples)
        while True:
            buckets: dict[int, TimedReading] = {}
            for reading in self._readings:
                key = math.floor(reading.t_s / self._bucket_s)
                held = buckets.get(key)
                buckets[key] = reading if held is None else _maxima(held, reading)
            if len(buckets) <= self._max_samples // 2:
                break
            self._bucket_s *= 2
        self._readings = list(buckets.values())


def _moved(before: int | None, after: int | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) >= GRAIN_BYTES


def _maxima(a: TimedReading, b: TimedReading) -> TimedReading:
    """Return the maxima, at the time of the higher device reading: a peak keeps its moment."""
    at = b.t_s if (b.device_bytes or 0) > (a.device_bytes or 0) else a.t_s
    return TimedReading(
        at, _larger(a.device_bytes, b.device_bytes), _larger(a.process_bytes, b.process_bytes)
    )


def _larger(a: int | None, b: int | None) -> int | None:
    return max((v for v in (a, b) if v is not None), default=None)


class Intervals:
    """Gives percentiles of any number of durations from a fixed 8 kB: logarithmic bins of 2 %, from 10 us up."""

    _FLOOR_S, _GROWTH, _BINS = 1e-5, math.log(1.02), 1024

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * self._BINS))

    def add(self, duration_s: float) -> None:
        index = int(math.log(max(duration_s, self._FLOOR_S) / self._FLOOR_S) / self._GROWTH)
        self._counts[min(index, self._BINS - 1)] += 1

    def percentile(self, q: float) -> float | None:
        rank = q * sum(self._counts)
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return self._FLOOR_S * math.exp((index + 0.5) * self._GROWTH)
        return None


class Sampler:
    """Reads `meter` in a thread until closed. `begin` starts the record that `window` reads from."""

    def __init__(self, meter: Meter, interval_s: float = INTERVAL_S) -> None:
        self._meter = meter
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._trace = Trace()
        self._intervals = Intervals()
        self._latest = MeterReading(None, None)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forget what was read so far."""
        with self._lock:
            self._trace = Trace()
            self._intervals = Intervals()

    def latest(self) -> MeterReading:
        return self._latest

    def window(self, start_s: float, end_s: float) -> Window:
        """Return what was read since the last `begin` between two moments of `time.monotonic()`."""
        with self._lock:
            readings = self._trace.between(start_s, end_s)
            return Window(readings, self._intervals.percentile(0.5), self._intervals.percentile(0.99))

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        before = None
        due = time.monotonic()
        while not self._closing.is_set():
            now = time.monotonic()
            reading = self._meter.read()
            with self._lock:
                if before is not None:
                    self._intervals.add(now - before)
                self._trace.add(now, reading)
            self._latest = reading
            before = now
            due += self._interval_s
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            else:
                due -= delay  # late: no burst to catch up
