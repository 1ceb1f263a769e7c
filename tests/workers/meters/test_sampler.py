import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.meters import MeterReading
from workers.meters.sampler import GRAIN_BYTES, HEARTBEAT_S, Intervals, Sampler, Trace

KiB64 = GRAIN_BYTES
values = st.integers(0, 40).map(lambda n: n * KiB64)


def traced(readings, **options) -> Trace:
    trace = Trace(**options)
    for index, reading in enumerate(readings):
        trace.add(index * 0.005, MeterReading(*reading))
    return trace


def everything(trace: Trace):
    return trace.between(-1.0, 1e9)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=300))
def test_every_change_is_kept(readings):
    """A step function: what was kept tells the value at every moment."""
    kept = {reading.t_s: reading for reading in everything(traced(readings))}
    current = None
    for index, reading in enumerate(readings):
        current = kept.get(index * 0.005, current)
        assert current is not None
        assert (current.device_bytes, current.process_bytes) == reading


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=400),
    st.integers(8, 64),
)
def test_a_thinned_record_keeps_the_maxima_in_order(readings, room):
    kept = everything(traced(readings, max_samples=room))
    assert len(kept) <= room + 2
    assert max(r.device_bytes for r in kept) == max(device for device, _ in readings)
    assert max(r.process_bytes for r in kept) == max(process for _, process in readings)
    times = [r.t_s for r in kept]
    assert times == sorted(times)


def test_a_long_record_keeps_as_many_readings_as_there_is_room_for():
    """A cache that grows by copies changes with every reading; the record of minutes must not shrink to a few."""
    kept = everything(traced([(KiB64 * (n % 2 + n), 0) for n in range(20_000)], max_samples=128))
    gaps = [after.t_s - before.t_s for before, after in itertools.pairwise(kept)]
    assert len(kept) >= 32
    assert max(gaps) <= 100.0 / 16


def test_a_plateau_costs_a_heartbeat_a_second():
    kept = everything(traced([(KiB64, None)] * 2000))
    assert len(kept) == pytest.approx(2 * 10 / HEARTBEAT_S, abs=3)


def test_noise_below_the_grain_is_not_kept_but_a_new_maximum_is():
    kept = everything(traced([(10 * KiB64, 0), (10 * KiB64 - 4096, 0), (10 * KiB64 + 4096, 0)]))
    assert [r.device_bytes for r in kept] == [10 * KiB64, 10 * KiB64 - 4096, 10 * KiB64 + 4096]
    noise = [(10 * KiB64, 0)] + [(10 * KiB64 - 4096 * (n % 3), 0) for n in range(100)]
    assert len(everything(traced(noise))) <= 2


@given(st.lists(st.floats(2e-5, 10.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_percentiles_within_two_percent(durations, q):
    intervals = Intervals()
    for duration in durations:
        intervals.add(duration)
    rank = max(1, -(-int(q * 10**6) * len(durations) // 10**6))
    assert intervals.percentile(q) == pytest.approx(sorted(durations)[rank - 1], rel=0.02)


def test_no_interval_no_percentile():
    assert Intervals().percentile(0.5) is None


class Ramp:
    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> MeterReading:
        self.reads += 1
        return MeterReading(self.reads * KiB64, None)


def test_sampler_records_windows_and_forgets():
    meter = Ramp()
    sampler = Sampler(meter, interval_s=0.001)
    try:
        while meter.reads < 20:
            time.sleep(0.001)
        sampler.begin()
        start = time.monotonic()
        while meter.reads < 40:
            time.sleep(0.001)
        middle = time.monotonic()
        while meter.reads < 60:
            time.sleep(0.001)
        window = sampler.window(start, middle)
        assert max(r.device_bytes for r in window.readings) <= 42 * KiB64
        assert min(r.device_bytes for r in window.readings) > 15 * KiB64
        assert all(start <= r.t_s <= middle for r in window.readings)
        assert 0 < window.interval_p50_s <= window.interval_p99_s
        assert sampler.latest().device_bytes >= 60 * KiB64
    finally:
        sampler.close()
    reads = meter.reads
    time.sleep(0.01)
    assert meter.reads == reads
