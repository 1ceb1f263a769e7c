"""Keeps what a job's log shows in the run folder: a file of plain lines for each driver's session.

A store takes whole files only. So a thread writes all lines again every few seconds while there are new ones; a driver that is
killed loses the last of them. A store that is away costs lines, never a cell.
"""

import io
import threading
import time
from contextlib import suppress
from typing import TextIO, cast

from orchestrator.journal.errors import LockLost, StoreError
from orchestrator.journal.store import Store
from orchestrator.watch import SweepEvent
from orchestrator.watch.plain import PlainWatcher

FOLDER = "logs"
_EVERY_S = 5.0
_PATIENCE_S = 10.0  # with a store that does not answer
#: Of the time, at most so much is spent on writing: a long log, or a store far away, is written less often.
_SHARE = 0.05


class SessionLog:
    """Sees a sweep's events, and takes other lines by `say`. Close it, again after more lines: it writes the rest."""

    def __init__(self, store: Store, session: int) -> None:
        """`session`: its number, from 1. Another number is taken where there is such a file."""
        names: set[str] = set()
        with suppress(StoreError):
            names.update(store.names(FOLDER))
        while f"session-{session}.txt" in names:
            session += 1
        self.name = f"{FOLDER}/session-{session}.txt"
        self._store = store
        self._lines, self._written = _Lines(), 0
        self._plain = PlainWatcher(cast(TextIO, self._lines))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="session-log")
        self._thread.start()

    def see(self, event: SweepEvent) -> None:
        self._plain.see(event)

    def say(self, text: str) -> None:
        """Keep a text of one line or several."""
        self._lines.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_PATIENCE_S)
        if not self._thread.is_alive():
            self._write()

    def _keep(self) -> None:
        pause_s = _EVERY_S
        while not self._ended.wait(pause_s):
            began = time.monotonic()
            self._write()
            pause_s = max(_EVERY_S, (time.monotonic() - began) / _SHARE)
        self._write()

    def _write(self) -> None:
        text = self._lines.text()
        if len(text) == self._written:
            return
        with suppress(StoreError, LockLost, OSError):
            self._store.write(self.name, text.encode("utf-8", "replace"))
            self._written = len(text)


class _Lines(io.TextIOBase):
    """Lines of one thread, read by another."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._lock = threading.Lock()

    def write(self, text: str, /) -> int:
        with self._lock:
            self._parts.append(text)
        return len(text)

    def text(self) -> str:
        with self._lock:
            self._parts = ["".join(self._parts)]
            return self._parts[0]
