"""Defines how far a running cell has come: news for people, never part of a result."""

from dataclasses import dataclass

from workers.attempt import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of a lease about once a second. `device_used_bytes`: what the budget is held against."""

    lease_id: str
    phase: Phase
    new_tokens: int
    elapsed_s: float  # since the child's start
    tokens_per_s: float | None = None  # recent, not the run's mean
    device_used_bytes: int | None = None
    power_w: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None  # the clock is held down now
