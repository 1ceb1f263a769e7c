"""Decides whether a cell is run again, is quarantined or is closed, and whether a device is retired. Pure.

A machine fault is retried, up to a limit, on another device where there is one. An outcome of the cell itself is not.
A cell that kills its process every time is quarantined. A lost node counts against neither the cell nor the device.
When the host's memory ran out, Ray's monitor may have ended an innocent cell: it runs again alone on its node, which
tells whether it was the cause.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from orchestrator.spec import SweepSpec
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.outcome import Outcome


class Blame(Enum):
    CELL = auto()  # as the outcome says
    NODE = auto()  # the node was lost or taken away
    MEMORY = auto()  # Ray's memory monitor chose a victim among neighbours


class NextStep(Enum):
    CLOSE = auto()  # the attempt is the cell's outcome
    RETRY = auto()
    QUARANTINE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`attempts`: of a cell that meets machine faults. `crashes`: until quarantine. `losses`: of nodes under a cell.
    `strikes`: different cells failing on one device in a row until the device is retired."""

    attempts: int = 3
    crashes: int = 2
    losses: int = 10
    strikes: int = 3

    @classmethod
    def of(cls, spec: SweepSpec) -> "Limits":
        return cls(attempts=spec.max_attempts, crashes=spec.max_crashes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryHistory:
    """What came of a work item's attempts so far. `attempts`: in the journal. `charged`: machine faults that count
    against the limit. `failed_on`: UUIDs of devices. `alone`: it needs its node to itself."""

    attempts: int = 0
    charged: int = 0
    crashes: int = 0
    losses: int = 0
    failed_on: frozenset[str] = frozenset()
    alone: bool = False


def after_attempt(
    history: RetryHistory, attempt: Attempt, blame: Blame, limits: Limits
) -> tuple[RetryHistory, NextStep]:
    """Return the history with `attempt` in it, and what to do with the cell."""
    history = dataclasses.replace(history, attempts=history.attempts + 1)
    outcome = attempt.outcome
    if outcome.is_final or outcome is Outcome.UNAVAILABLE:  # which the next run of the sweep finds open
        return history, NextStep.CLOSE
    if blame is Blame.NODE:
        history = dataclasses.replace(history, losses=history.losses + 1)
        return history, NextStep.RETRY if history.losses <= limits.losses else NextStep.CLOSE
    if blame is Blame.MEMORY:
        return dataclasses.replace(history, alone=True), NextStep.RETRY
    failed_on = history.failed_on | ({attempt.device.uuid} if attempt.device else set())
    if outcome is Outcome.CRASHED:
        history = dataclasses.replace(history, crashes=history.crashes + 1, failed_on=failed_on)
        return history, NextStep.RETRY if history.crashes < limits.crashes else NextStep.QUARANTINE
    history = dataclasses.replace(history, charged=history.charged + 1, failed_on=failed_on)
    return history, NextStep.RETRY if history.charged < limits.attempts else NextStep.CLOSE


def history_and_final(attempts: Iterable[Attempt], limits: Limits) -> tuple[RetryHistory, Attempt | None]:
    """Return a work item's history and its final attempt (None: still open), from its attempts in the journal.

    Crashes, hangs and GPU faults of earlier runs count. Infrastructure errors do not, nor does what was cancelled or
    unavailable. Of two final attempts of one number the first counts. One of a higher number was asked for (`--retry`):
    it begins anew, and takes the place of the one before.
    """
    history, final = RetryHistory(), None
    for attempt in sorted(attempts, key=lambda attempt: attempt.attempt):
        if final is not None and attempt.attempt > final.attempt:
            history, final = reopened(history), None
        if attempt.outcome.is_open:
            history = dataclasses.replace(history, attempts=history.attempts + 1)
            continue
        history, step = after_attempt(history, attempt, Blame.CELL, limits)
        if final is None and step is NextStep.CLOSE:
            final = attempt
    return history, final


def reopened(history: RetryHistory) -> RetryHistory:
    """Return the history of a closed item that is to be tried again: nothing counts against it."""
    return RetryHistory(attempts=history.attempts)


@dataclass(slots=True)
class Strikes:
    """Counts the different cells that failed in a row on one device and on no other: the sign of a broken device."""

    limit: int
    _cells: dict[str, set[Key]] = field(default_factory=dict)
    _elsewhere_too: set[Key] = field(default_factory=set)

    def note(self, key: Key, attempt: Attempt, blame: Blame) -> bool:
        """Return whether the device of `attempt` is to be retired."""
        if attempt.device is None or blame is not Blame.CELL:
            return False
        uuid = attempt.device.uuid
        if not attempt.outcome.strikes_device:
            self._cells.pop(uuid, None)
            return False
        others = [cells for device, cells in self._cells.items() if device != uuid and key in cells]
        for cells in others:  # it fails elsewhere too: the cell is at fault, not the device
            cells.discard(key)
            self._elsewhere_too.add(key)
        if key in self._elsewhere_too:
            return False
        cells = self._cells.setdefault(uuid, set())
        cells.add(key)
        return len(cells) >= self.limit
