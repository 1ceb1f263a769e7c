"""What a command prints, where printing may fail: output is never worth a cell."""

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from orchestrator.watch import SweepEvent, Watcher

_log = logging.getLogger(__name__)


def prepare_streams() -> None:
    """Call before anything opens a file. What the locale cannot encode is printed as `?`. A standard stream that the
    caller has closed becomes /dev/null: the next file that is opened would take its place, and be printed into.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lives as long as the process
        try:
            os.fstat(number)  # already taken: a library that was imported before holds it
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # not the interpreter's own: a test's, a notebook's
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def say(text: str) -> None:
    """Print a line, if anybody is there to read it."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        flush_or_discard()


def complain(text: str) -> None:
    """Print a line on stderr, if that can be written."""
    with suppress(OSError, ValueError):
        print(f"oomline: {text}", file=sys.stderr, flush=True)


def announce(text: str) -> None:
    """Print the first line of a sweep. That nobody reads is told once, and is no reason to run nothing."""
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        flush_or_discard()
        complain(f"progress is not shown ({type(error).__name__}: {error}); the sweep goes on")


def flush_or_discard() -> OSError | ValueError | None:
    """What stdout and stderr still hold is written, or goes nowhere with all that follows: at exit Python would fail
    over it. Return why stdout could not be written.
    """
    _flushed(sys.stderr)
    return _flushed(sys.stdout)


def _flushed(stream: TextIO) -> OSError | ValueError | None:
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


class NeverFails:
    """A watcher whose failures end its own work only."""

    def __init__(self, watcher: "Watcher") -> None:
        self._watcher: Watcher | None = watcher

    def see(self, event: "SweepEvent") -> None:
        if self._watcher is None:
            return
        try:
            self._watcher.see(event)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        if self._watcher is None:
            return
        try:
            self._watcher.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._watcher = None
        _log.warning(
            "progress is shown no more (%s: %s); the sweep goes on",
            *(type(error).__name__, error),
            exc_info=None if isinstance(error, OSError) else error,
        )
