"""The hosts of the other processes of a cell, as one of these hosts sees them: how theirs ended, and when they last moved.

They tell each other by files in the folder where their processes meet. A host writes its own and reads the others'. The
host that runs last removes the folder. A host that dies tells nothing: the driver ends the others.
"""

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from workers.outcome import Outcome
from workers.ranks import Ranks

_ENDED, _MOVED = "ended-", "moved-"
#: Movement is told no more often.
_TELL_S = 0.5


class PeerEnded(NamedTuple):
    rank: int
    outcome: Outcome


class PeerHosts:
    """Enter it for the time that a host runs its process of the cell. Alone it touches no file."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._folder = ranks.folder
        self._others = [index for index in range(ranks.count) if index != ranks.index]
        self._told_s = 0.0

    def __enter__(self) -> "PeerHosts":
        if self._others:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._others and not self._path(_ENDED, self._ranks.index).exists():
            self.tell_ended(Outcome.INFRA_ERROR)
        if self._others and all(self._path(_ENDED, index).exists() for index in self._others):
            shutil.rmtree(self._folder, ignore_errors=True)

    def tell_ended(self, outcome: Outcome) -> None:
        """Tell how this host's process ended. Call when it is gone."""
        if not self._others:
            return
        path = self._path(_ENDED, self._ranks.index)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(outcome)
        os.replace(unfinished, path)

    def first_bad_end(self) -> PeerEnded | None:
        """Return another process that has ended without having done its part, None while there is none."""
        for index in self._others:
            with contextlib.suppress(FileNotFoundError):
                outcome = Outcome(self._path(_ENDED, index).read_text())
                if outcome is not Outcome.OK:
                    return PeerEnded(index, outcome)
        return None

    def tell_moved(self, moved_s: float) -> None:
        """Tell when this host's process last moved, `time.monotonic()`."""
        if self._others and moved_s - self._told_s >= _TELL_S:
            path = self._path(_MOVED, self._ranks.index)
            path.touch()
            os.utime(path, (moved_s, moved_s))
            self._told_s = moved_s

    def moved_s(self) -> float:
        """Return when one of the others last moved; 0 where none has. While one moves, those that wait for it do not
        hang."""
        latest = 0.0
        for index in self._others:
            with contextlib.suppress(FileNotFoundError):
                latest = max(latest, self._path(_MOVED, index).stat().st_mtime)
        return latest

    def _path(self, what: str, index: int) -> Path:
        return self._folder / f"{what}{index}"
