"""Where a run stands, from its folder alone: while it runs, after it, after it was killed."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.answer import RunAnswer, read_answer
from orchestrator.journal.errors import REFUSALS
from orchestrator.journal.folder import read_run
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from orchestrator.spec_error import SpecError
from orchestrator.sweep.outcomes import Outcomes
from orchestrator.sweep.retry_policy import Limits
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCounts:
    """`planned`: measured cells times the kinds of device that ran, None without a sweep file. `completed`: measured
    cells that the run has closed, on each kind. `probes`: cells of the boundary search, closed or not.

    `outcomes`: of every cell on each kind: the one that closed it, or that of its last attempt.
    """

    planned: int | None
    completed: int
    probes: int
    outcomes: dict[Outcome, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    uuid: str
    kind: str
    node: str
    attempts: int
    last_ended_s_ago: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """`state`: running | finished | stopped | failed | unknown, of the last driver. One that was killed leaves
    `running`. The counts are those of `CellCounts`. `answer`: of the last report, None without one.
    """

    folder: str
    name: str
    state: str
    note: str
    planned: int | None
    completed: int
    probes: int
    attempts: int
    outcomes: dict[str, int]
    devices: tuple[DeviceStatus, ...]
    set_aside: tuple[str, ...]
    answer: RunAnswer | None
    last_attempt_s_ago: float | None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def read_status(folder: str) -> RunStatus:
    """Raises `SpecError` where there is no run folder, or one of a newer schema."""
    try:
        run = read_run(folder)
        history = run.journal.history()
    except REFUSALS as error:
        raise SpecError(str(error)) from None
    counts = count_cells(run.spec, history)
    now = time.time()
    ended = [attempt.started_at + attempt.duration_s for attempt in history]
    return RunStatus(
        folder=folder,
        name=run.manifest.name if run.manifest else run.spec.name if run.spec else "unknown",
        state=run.manifest.state if run.manifest else "unknown",
        note=run.manifest.sessions[-1].note if run.manifest and run.manifest.sessions else "",
        planned=counts.planned,
        completed=counts.completed,
        probes=counts.probes,
        attempts=len(history),
        outcomes={outcome.value: count for outcome, count in counts.outcomes.items()},
        devices=_devices(history, now),
        answer=read_answer(run.store),
        set_aside=tuple(part.name for part in run.journal.set_aside),
        last_attempt_s_ago=now - max(ended) if ended else None,
    )


def count_cells(spec: SweepSpec | None, history: Sequence[Attempt]) -> CellCounts:
    """Count what a run of `spec` would find closed when it resumes from `history`."""
    closed = Outcomes(history, Limits() if spec is None else Limits.of(spec))
    last = _last_attempts(history)
    probes = sum(attempt.cell.purpose == "probe" for attempt in last.values())
    open_outcomes = Counter(attempt.outcome for key, attempt in last.items() if key not in closed.finals)
    kinds = len({key.device_kind for key in last})
    completed = sum(last[key].cell.purpose == "measure" for key in closed.finals)
    return CellCounts(
        # With `repeats: auto` there are more than the plan began with.
        planned=None if spec is None else max(len(expand(spec)) * max(kinds, 1), completed),
        completed=completed,
        probes=probes,
        outcomes=dict((closed.counts + open_outcomes).most_common()),
    )


def _last_attempts(history: Sequence[Attempt]) -> dict[Key, Attempt]:
    """By cell and kind of device. An attempt without a device closes no cell, and counts for none."""
    last: dict[Key, Attempt] = {}
    for attempt in history:
        if attempt.device is None:
            continue
        key = Key(attempt.cell.cell_id, attempt.device.kind)
        if key not in last or last[key].attempt <= attempt.attempt:
            last[key] = attempt
    return last


def _devices(history: Sequence[Attempt], now: float) -> tuple[DeviceStatus, ...]:
    by_uuid: dict[str, list[Attempt]] = {}
    for attempt in history:
        if attempt.device is not None:
            by_uuid.setdefault(attempt.device.uuid, []).append(attempt)
    return tuple(
        DeviceStatus(
            uuid=uuid,
            kind=device.kind,
            node=device.node,
            attempts=len(attempts),
            last_ended_s_ago=now - max(attempt.started_at + attempt.duration_s for attempt in attempts),
        )
        for uuid, attempts in sorted(by_uuid.items())
        if (device := attempts[-1].device) is not None
    )
