import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempt import Phase
from workers.host.child.recorder import RunRecorder
from workers.host.events import Checkpoint, Entered


class SteppedClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SteppedClock:
    clock = SteppedClock()
    monkeypatch.setattr("workers.host.child.recorder.time", clock)
    return clock


def begun(clock: SteppedClock, length: int) -> tuple[RunRecorder, list]:
    events: list = []
    recorder = RunRecorder(events.append, 100.0, length)
    recorder.phase(Phase.PREFILL)
    clock.now += 2.0
    return recorder, events


def steps(events: list) -> list[int]:
    return [event.step.token_index for event in events if isinstance(event, Checkpoint)]


def test_timing_of_plain_decoding(clock):
    recorder, _ = begun(clock, 5)
    for produced in range(1, 6):
        recorder.tokens(produced)
        recorder.phase(Phase.DECODE)
        clock.now += 0.1 if produced < 4 else 0.5
    timing = recorder.timing(batch_size=3, ended_s=clock.now)
    assert timing.ttft_s == pytest.approx(2.0)
    assert timing.prefill_s == pytest.approx(2.0)
    assert timing.tokens_per_s == pytest.approx(3 * 4 / 0.8)
    assert timing.tpot_p50_s == pytest.approx(0.1)
    assert timing.tpot_p99_s == pytest.approx(0.5, rel=0.05)
    assert timing.decode_s == pytest.approx(1.3)


def test_tokens_of_a_round_share_its_time(clock):
    recorder, _ = begun(clock, 9)
    recorder.tokens(1)
    clock.now += 0.4
    recorder.tokens(5)
    clock.now += 0.4
    recorder.tokens(9)
    timing = recorder.timing(batch_size=1, ended_s=clock.now)
    assert timing.tpot_p50_s == timing.tpot_p99_s == pytest.approx(0.1)
    assert timing.tokens_per_s == pytest.approx(10.0)


def test_times_of_the_device_rule(clock):
    recorder, _ = begun(clock, 4)
    recorder.token_times(0, [0.01, 0.03, 0.05, 0.07])
    recorder.tokens(4)  # the host learned of all four at once
    timing = recorder.timing(batch_size=1, ended_s=clock.now)
    assert timing.tpot_p50_s == pytest.approx(0.02)
    assert timing.tokens_per_s == pytest.approx(50.0)


def test_no_token_no_timing(clock):
    recorder, _ = begun(clock, 4)
    assert recorder.timing(1, clock.now).tokens_per_s is None
    assert recorder.timing(1, clock.now).ttft_s is None


@given(length=st.integers(1, 5000), round_tokens=st.integers(1, 9))
def test_steps_are_few_rising_and_hold_both_ends(length, round_tokens):
    events: list = []
    recorder = RunRecorder(events.append, 0.0, length)
    for produced in [*range(1, length, round_tokens), length]:
        recorder.tokens(produced)
    recorder.finish()
    recorder.finish()
    indices = steps(events)
    assert len(indices) <= 514
    assert indices == sorted(set(indices))
    assert (indices[0], indices[-1]) == (0, length - 1)


def test_slow_tokens_are_reported_between_steps(clock):
    recorder, events = begun(clock, 5000)
    recorder.tokens(1)
    clock.now += 1.5
    recorder.tokens(2)
    assert [type(event) for event in events[-1:]] != [Checkpoint]
    assert recorder.produced == 2


def test_a_phase_is_entered_once(clock):
    recorder, events = begun(clock, 4)
    recorder.phase(Phase.PREFILL)
    assert [event.phase for event in events if isinstance(event, Entered)] == [Phase.PREFILL]


def test_more_tokens_than_asked_for_are_survived(clock):
    recorder, _ = begun(clock, 2)
    for produced in range(1, 10):
        clock.now += 0.1
        recorder.tokens(produced)
    recorder.token_times(0, [0.1] * 10)
    assert recorder.produced == 9
    recorder.timing(1, clock.now)
