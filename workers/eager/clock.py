"""The time of single forwards, without a wait per token: events on a GPU, the host's clock on a CPU."""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

#: Enough for a median; a run of a million tokens must not keep a million events.
_KEPT = 1024


class ForwardClock:
    """Times forwards of one model. `measure` those that read between `least` and `most` tokens."""

    def __init__(self, model: PreTrainedModel, least: int, most: int) -> None:
        self._model = model
        self._least, self._most = least, most
        self._on_device = model.device.type == "cuda"
        self._marks: deque[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = deque(maxlen=_KEPT)
        self._begun: torch.cuda.Event | float | None = None

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
        """Waits for the device. None when no such forward ran."""
        if self._on_device:
            torch.cuda.synchronize(self._model.device)
            times = [begun.elapsed_time(ended) / 1e3 for begun, ended in self._marks]  # type: ignore[union-attr]
        else:
            times = [ended - begun for begun, ended in self._marks]  # type: ignore[operator]
        return statistics.median(times) if times else None

    def _before(
        self, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]
    ) -> None:
        if self._least <= kwargs["input_ids"].shape[1] <= self._most:
            self._begun = self._now()

    def _after(self, module: torch.nn.Module, args: tuple[object, ...], output: object) -> None:
        if self._begun is not None:
            self._marks.append((self._begun, self._now()))
            self._begun = None

    def _now(self) -> "torch.cuda.Event | float":
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._model.device))
        return event
