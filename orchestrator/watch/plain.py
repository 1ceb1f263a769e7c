"""Shows a sweep in a pipe or a job log: one line per finished cell or event, and a heartbeat every 30 s.

`ray job logs` has no TTY, turns each carriage return into a line, and batches by the second.
"""

import time
from collections.abc import Callable
from typing import TextIO

from orchestrator.names import Names
from orchestrator.watch import (
    CellFinished,
    DeviceJoined,
    DeviceLost,
    Notice,
    SweepEnded,
    SweepEvent,
    SweepStarted,
    Tick,
)
from orchestrator.watch.formats import attempt_words, device_words, one_line, totals
from workers.units import duration_text

HEARTBEAT_S = 30.0


class PlainWatcher:
    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._last_line = clock()
        self._names = Names.of_refs([])

    def see(self, event: SweepEvent) -> None:
        match event:
            case SweepStarted():
                self._names = Names.of_refs(event.models)
                searches = (
                    f" and {_plural(event.searches, 'boundary search', 'es')}" if event.searches else ""
                )
                are = "is" if event.reused == 1 else "are"
                reused = (
                    f"; {_plural(event.reused, 'outcome')} on record {are} reused" if event.reused else ""
                )
                self._line(
                    f"{event.run_id}: {_plural(event.cells, 'cell')}{searches} per kind of device{reused}"
                )
            case DeviceJoined():
                self._line(f"device {event.slot} joined: {device_words(event.device)}")
            case DeviceLost():
                self._line(f"device {event.slot} left{' for good' if event.for_good else ''}: {event.reason}")
            case CellFinished():
                again = "" if event.final else " (not final)"
                self._line(f"{event.slot or '-'} {attempt_words(event.attempt, self._names)}{again}")
            case Notice():
                self._line(event.text)
            case Tick() if self._clock() - self._last_line >= HEARTBEAT_S:
                self._line(f"still going, {duration_text(event.elapsed_s)}: {totals(event)}")
            case SweepEnded():
                self._line(event.text)

    def close(self) -> None:
        self._out.flush()

    def _line(self, text: str) -> None:
        self._last_line = self._clock()
        print(time.strftime("%H:%M:%S"), one_line(text)[:500], file=self._out, flush=True)


def _plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else ending}"
