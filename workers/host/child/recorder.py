"""Records a run inside the child: decides which steps to keep and to send, and computes the times per token."""

import math
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.ma  # `np.percentile` would import it in every cell

from workers.attempt import Phase, Step
from workers.host.events import Checkpoint, Entered, Event, Produced

_MAX_STEPS = 512
_ALIVE_EVERY_S = 1.0

#: (allocated, reserved) bytes of torch's allocator; None where it keeps no count.
AllocatorBytes = Callable[[], tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Timing:
    """`tokens_per_s`: of the decode, all sequences together. Times per output token: seconds, of one sequence."""

    ttft_s: float | None = None
    tokens_per_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    tpot_p99_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None


class RunRecorder:
    """Implements `workers.engines.session.Recorder`. Its memory is taken before the run and does not grow with it.

    Steps: at most `_MAX_STEPS` evenly spaced token indices, the first and the last new token among them.
    """

    def __init__(
        self,
        send: Callable[[Event], None],
        started_s: float,
        length: int,
        on_phase: Callable[[Phase], None] = lambda phase: None,
        allocator_bytes: AllocatorBytes = lambda: (None, None),
    ) -> None:
        self._send = send
        self._started_s = started_s
        self._on_phase = on_phase
        self._allocator_bytes = allocator_bytes
        self._every = max(1, math.ceil(length / (_MAX_STEPS - 1)))
        self._next_step = 1
        self._counts = array("q", bytes(8 * (length + 1)))
        self._times = array("d", bytes(8 * (length + 1)))
        self._on_device = array("d", bytes(8 * (length + 1)))  # 0 = not reported
        self._marks = 0
        self._last_step = 0
        self._last_sent_s = 0.0
        self._entered_s: dict[Phase, float] = {}
        self._kv_cache_bytes: Callable[[], int] | None = None
        self.current = Phase.SPAWN
        self.produced = 0
        self.prompt_read: int | None = None

    def phase(self, phase: Phase) -> None:
        if phase is self.current:
            return
        self.current = phase
        self._entered_s[phase] = self._last_sent_s = time.monotonic()
        self._send(Entered(phase, self._entered_s[phase]))
        self._on_phase(phase)

    def prompt(self, read: int) -> None:
        self.prompt_read = read

    def tokens(self, produced: int) -> None:
        if produced <= self.produced:
            return
        now = time.monotonic()
        self.produced = produced
        if self._marks < len(self._counts):
            self._counts[self._marks], self._times[self._marks] = produced, now
            self._marks += 1
        if produced >= self._next_step:
            self._next_step = produced + self._every
            self._checkpoint(now)
        elif now - self._last_sent_s >= _ALIVE_EVERY_S:
            self._last_sent_s = now
            self._send(Produced(produced))

    def token_times(self, first_index: int, times_s: list[float]) -> None:
        end = min(first_index + len(times_s), len(self._on_device))
        self._on_device[first_index:end] = array("d", times_s[: end - first_index])

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._kv_cache_bytes = kv_cache_bytes

    def finish(self) -> None:
        """Send the state after the last token."""
        if self._last_step < self.produced:
            self._checkpoint(time.monotonic())

    def entered_s(self, phase: Phase) -> float | None:
        return self._entered_s.get(phase)

    def kv_cache_bytes(self) -> int | None:
        return self._kv_cache_bytes() if self._kv_cache_bytes is not None else None

    def timing(self, batch_size: int, ended_s: float) -> Timing:
        prefill, decode = self._entered_s.get(Phase.PREFILL), self._entered_s.get(Phase.DECODE)
        if prefill is None or self._marks == 0:
            return Timing()
        first, last = self._times[0], self._times[self._marks - 1]
        tokens, seconds = self._counts[self._marks - 1] - self._counts[0], last - first
        intervals = _per_token(self._counts[: self._marks], self._times[: self._marks])
        reported = np.asarray(self._on_device)
        reported = reported[reported > 0]
        if len(reported) > 1:
            intervals = np.diff(reported)
            tokens, seconds = len(intervals), float(reported[-1] - reported[0])
        p50, p95, p99 = np.percentile(intervals, (50, 95, 99)).tolist() if len(intervals) else (None,) * 3
        return Timing(
            ttft_s=first - prefill,
            tokens_per_s=tokens * batch_size / seconds if seconds > 0 else None,
            tpot_p50_s=p50,
            tpot_p95_s=p95,
            tpot_p99_s=p99,
            prefill_s=decode - prefill if decode is not None else None,
            decode_s=ended_s - decode if decode is not None else None,
        )

    def _checkpoint(self, now: float) -> None:
        allocated, reserved = self._allocator_bytes()
        self._last_step, self._last_sent_s = self.produced, now
        self._send(
            Checkpoint(
                Step(
                    token_index=self.produced - 1,
                    t_s=now - self._started_s,
                    allocated_bytes=allocated,
                    reserved_bytes=reserved,
                    kv_cache_bytes=self.kv_cache_bytes(),
                )
            )
        )


def _per_token(counts: array, times: array) -> np.ndarray:
    """Return the seconds of each token after the first mark. The tokens of one round share its time evenly."""
    produced = np.diff(np.asarray(counts))
    return np.repeat(np.diff(np.asarray(times)) / np.maximum(produced, 1), produced)
