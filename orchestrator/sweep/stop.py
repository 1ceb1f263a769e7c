"""SIGTERM and SIGINT as a question that the loop asks once a round."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopSignals:
    """`requested()`: the reason, once a signal came. A second SIGINT ends the process as usual."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def requested(self) -> str | None:
        return self._reason

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Enter after `ray.init`: Ray installs a SIGTERM handler of its own, which ends the process after 3 s."""
    stop = StopSignals()
    before = {number: signal.signal(number, stop._note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
