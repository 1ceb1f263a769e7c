"""Times single forwards without waiting for each token: by events on a GPU, by the host's clock on a CPU."""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

#: Enough for a median; a run of a million tokens must not keep a million events.
_KEPT = 1024


class _Event:
    """A moment on the device."""

    __slots__ = ("_event",)

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(torch.cuda.current_stream(device))

    def seconds_to(self, later: "_Event") -> float:
        return self._event.elapsed_time(later._event) / 1e3


class _Instant:
    """A moment on the host."""

    __slots__ = ("_at",)

    def __init__(self, device: torch.device) -> None:
        self._at = time.perf_counter()

    def seconds_to(self, later: "_Instant") -> float:
        return later._at - self._at


class ForwardClock:
    """Times the forwards of one model that read between `least` and `most` tokens."""

    def __init__(self, model: PreTrainedModel, least: int, most: int) -> None:
        self._model = model
        self._least, self._most = least, most
        self._moment: type[Any] = _Event if model.device.type == "cuda" else _Instant
        self._begun: Any = None
        self._marks: deque[tuple[Any, Any]] = deque(maxlen=_KEPT)

    @contextmanager
    def running(self) -> Iterator["ForwardClock"]:
        before = self._model.register_forward_pre_hook(self._before, with_kwargs=True)
        after = self._model.register_forward_hook(self._after)
        try:
            yield self
        finally:
            before.remove()
            after.remove()

    def median_s(self) -> float | None:
        """Return the median, None when no such forward ran. Waits for the device."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        times = [begun.seconds_to(ended) for begun, ended in self._marks]
        return statistics.median(times) if times else None

    def _before(self, module: torch.nn.Module, args: tuple[()], kwargs: dict[str, torch.Tensor]) -> None:
        if self._least <= kwargs["input_ids"].shape[1] <= self._most:
            self._begun = self._moment(self._model.device)

    def _after(self, module: torch.nn.Module, args: tuple[()], output: object) -> None:
        if self._begun is not None:
            self._marks.append((self._begun, self._moment(self._model.device)))
            self._begun = None
