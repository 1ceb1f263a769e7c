"""Whose fault, and what next: retries, quarantine of cells, quarantine of devices. Pure.

A broken machine is retried, boundedly, on another device where there is one; an outcome of the cell itself never is.
A cell that kills its process every time is quarantined. A lost node is nobody's fault. When the host's memory ran
out, Ray's monitor may have ended an innocent: the cell runs again alone on its node, and that tells.
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


class Verdict(Enum):
    FINAL = auto()
    RETRY = auto()
    QUARANTINE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`attempts`: of a cell that meets machine faults; `crashes`: until quarantine; `losses`: of nodes under a cell;
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
    """What a work item has been through. `attempts`: in the journal, so the number of the next one."""

    attempts: int = 0
    charged: int = 0
    crashes: int = 0
    losses: int = 0
    failed_on: frozenset[str] = frozenset()
    alone: bool = False


def judge(
    history: RetryHistory, attempt: Attempt, blame: Blame, limits: Limits
) -> tuple[RetryHistory, Verdict]:
    """The history after `attempt`, and whether that was its last."""
    history = dataclasses.replace(history, attempts=history.attempts + 1)
    outcome = attempt.outcome
    if outcome.is_final:
        return history, Verdict.FINAL
    if blame is Blame.NODE:
        history = dataclasses.replace(history, losses=history.losses + 1)
        return history, Verdict.RETRY if history.losses <= limits.losses else Verdict.FINAL
    if blame is Blame.MEMORY:
        return dataclasses.replace(history, alone=True), Verdict.RETRY
    failed_on = history.failed_on | ({attempt.device.uuid} if attempt.device else set())
    if outcome is Outcome.CRASHED:
        history = dataclasses.replace(history, crashes=history.crashes + 1, failed_on=failed_on)
        return history, Verdict.RETRY if history.crashes < limits.crashes else Verdict.QUARANTINE
    history = dataclasses.replace(history, charged=history.charged + 1, failed_on=failed_on)
    return history, Verdict.RETRY if history.charged < limits.attempts else Verdict.FINAL


def recall(attempts: Iterable[Attempt], limits: Limits) -> tuple[RetryHistory, Attempt | None]:
    """RetryHistory and final attempt (None: still to be done) of one work item, from its attempts in the journal.

    Crashes, hangs and GPU faults still count in a resumed run; infrastructure is given a fresh chance, and so is
    what was cancelled. Of several final attempts the first wins.
    """
    history, final = RetryHistory(), None
    for attempt in attempts:
        if attempt.outcome.is_open:
            history = dataclasses.replace(history, attempts=history.attempts + 1)
            continue
        history, verdict = judge(history, attempt, Blame.CELL, limits)
        if final is None and verdict is Verdict.FINAL:
            final = attempt
    return history, final


@dataclass(slots=True)
class Strikes:
    """Different cells that failed on a device in a row and nowhere else: what a broken device looks like."""

    limit: int
    _cells: dict[str, set[Key]] = field(default_factory=dict)
    _elsewhere_too: set[Key] = field(default_factory=set)

    def note(self, key: Key, attempt: Attempt, blame: Blame) -> bool:
        """True when the device of `attempt` is to be retired."""
        if attempt.device is None or blame is not Blame.CELL:
            return False
        uuid = attempt.device.uuid
        if not attempt.outcome.strikes_device:
            self._cells.pop(uuid, None)
            return False
        others = [cells for device, cells in self._cells.items() if device != uuid and key in cells]
        for cells in others:  # it fails elsewhere too: the cell, not the device
            cells.discard(key)
            self._elsewhere_too.add(key)
        if key in self._elsewhere_too:
            return False
        cells = self._cells.setdefault(uuid, set())
        cells.add(key)
        return len(cells) >= self.limit
