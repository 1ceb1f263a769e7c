"""Turns SIGTERM, SIGINT and SIGHUP into a reason to stop, which the loop asks for once a round."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignals:
    """Notes the first signal; `requested` tells it. A second SIGINT raises KeyboardInterrupt, a third does nothing.

    SIGHUP, of a closed terminal, is left alone where it was ignored before (`nohup`).
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._before: dict[signal.Signals, _Handler] = {}

    def requested(self) -> str | None:
        """Return the reason once a signal has come."""
        return self._reason

    def listen(self) -> None:
        """Install the handlers. Call again after `ray.init`, which replaces SIGTERM's by one that ends the process
        after 3 s. Python gives signals to its main thread alone: on another one nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            handler = signal.signal(number, self._note)
            self._before.setdefault(number, handler)

    def restore(self) -> None:
        """Put the handlers from before `listen` back. After a SIGHUP the next ones are ignored: a shell and the
        kernel each send one, and the report is still to be written."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._reason == _reason(signal.SIGHUP):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or _reason(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, _end_now)


def _end_now(number: int, frame: FrameType | None) -> None:
    """Once: what cleans up after it is not to be interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _reason(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listen for the length of the block. On another thread than the main one no signal is heard."""
    stop = StopSignals()
    stop.listen()
    try:
        yield stop
    finally:
        stop.restore()
