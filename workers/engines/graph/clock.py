"""When a step was done and what a counter then held, without stopping the device."""

import time
from typing import Any, Protocol

import torch

#: A CUDA event, or seconds.
Mark = Any


class Clock(Protocol):
    def mark(self) -> Mark:
        """A point in the device's stream of work."""

    def fetch(self, counter: torch.Tensor) -> torch.Tensor:
        """Bring a scalar to the host; to be read once a later mark has passed."""

    def wait(self, mark: Mark) -> None:
        """Until the device has passed `mark`."""

    def seconds(self, earlier: Mark, later: Mark) -> float:
        """Between two marks that have passed."""


class HostClock:
    """A CPU is done when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def fetch(self, counter: torch.Tensor) -> torch.Tensor:
        return counter.clone()

    def wait(self, mark: Mark) -> None:
        """It has passed."""

    def seconds(self, earlier: Mark, later: Mark) -> float:
        return later - earlier


class DeviceClock:
    """CUDA events; counters come through pinned memory."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record()
        return event

    def fetch(self, counter: torch.Tensor) -> torch.Tensor:
        host = torch.empty((), dtype=counter.dtype, pin_memory=True)
        return host.copy_(counter, non_blocking=True)

    def wait(self, mark: Mark) -> None:
        mark.synchronize()

    def seconds(self, earlier: Mark, later: Mark) -> float:
        return earlier.elapsed_time(later) / 1e3


def clock_of(device: torch.device) -> Clock:
    return DeviceClock() if device.type == "cuda" else HostClock()
