"""Whose fault, and what next: retries, quarantine of cells, quarantine of devices. Pure.

A broken machine is retried, boundedly, on another device where there is one; an outcome of the cell itself never is.
A cell that kills its process every time is quarantined. A lost node is nobody's fault. When the host's memory ran
out, Ray's monitor may have ended an innocent: the cell runs again alone on its node, and that tells.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt, Outcome

_MACHINE = frozenset({Outcome.INFRA_ERROR, Outcome.HANG, Outcome.GPU_FAULT})
#: Outcomes that point at the device as much as at the cell. A hang or a crash is the cell's word against the device's.
_DEVICE = frozenset({Outcome.INFRA_ERROR, Outcome.GPU_FAULT})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a work item has been through. `attempts`: in the journal, so the number of the next one."""

    attempts: int = 0
    charged: int = 0
    crashes: int = 0
    losses: int = 0
    failed_on: frozenset[str] = frozenset()
    alone: bool = False


def judge(standing: Standing, attempt: Attempt, blame: Blame, limits: Limits) -> tuple[Standing, Verdict]:
    """The standing after `attempt`, and whether that was its last."""
    standing = dataclasses.replace(standing, attempts=standing.attempts + 1)
    outcome = attempt.outcome
    if outcome is not Outcome.CRASHED and outcome not in _MACHINE:
        return standing, Verdict.FINAL
    if blame is Blame.NODE:
        standing = dataclasses.replace(standing, losses=standing.losses + 1)
        return standing, Verdict.RETRY if standing.losses <= limits.losses else Verdict.FINAL
    if blame is Blame.MEMORY:
        return dataclasses.replace(standing, alone=True), Verdict.RETRY
    failed_on = standing.failed_on | ({attempt.device.uuid} if attempt.device else set())
    if outcome is Outcome.CRASHED:
        standing = dataclasses.replace(standing, crashes=standing.crashes + 1, failed_on=failed_on)
        return standing, Verdict.RETRY if standing.crashes < limits.crashes else Verdict.QUARANTINE
    standing = dataclasses.replace(standing, charged=standing.charged + 1, failed_on=failed_on)
    return standing, Verdict.RETRY if standing.charged < limits.attempts else Verdict.FINAL


def recall(attempts: Iterable[Attempt], limits: Limits) -> tuple[Standing, Attempt | None]:
    """Standing and final attempt (None: still to be done) of one work item, from its attempts in the journal.

    Crashes, hangs and GPU faults still count in a resumed run; infrastructure is given a fresh chance, and so is
    what was cancelled. Of several final attempts the first wins.
    """
    standing, final = Standing(), None
    for attempt in attempts:
        if attempt.outcome in (Outcome.CANCELLED, Outcome.INFRA_ERROR):
            standing = dataclasses.replace(standing, attempts=standing.attempts + 1)
            continue
        standing, verdict = judge(standing, attempt, Blame.CELL, limits)
        if final is None and verdict is Verdict.FINAL:
            final = attempt
    return standing, final


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
        if attempt.outcome not in _DEVICE:
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
