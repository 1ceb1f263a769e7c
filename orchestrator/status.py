"""Where a run stands, from its folder alone: while it runs, after it, after it was killed."""

import dataclasses
import json
import time
from collections import Counter
from dataclasses import dataclass

from orchestrator.journal.folder import FolderError, read_run
from orchestrator.journal.journal import Past
from orchestrator.journal.parts import SchemaTooNew
from orchestrator.journal.store import StoreError
from orchestrator.plan import expand
from orchestrator.spec import SpecError
from workers.attempt import Outcome

#: An attempt that ends so is not the last word on its cell: the next run of the same command tries again.
_OPEN = frozenset({Outcome.INFRA_ERROR, Outcome.CANCELLED, Outcome.HANG, Outcome.GPU_FAULT})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    uuid: str
    kind: str
    node: str
    attempts: int
    last_ended_s_ago: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """`state`: running | finished | stopped | failed | died. `planned`: cells per device kind, probes apart.

    `outcomes`: of the last attempt at each cell on each kind of device. `reached`: planned cells whose last
    attempt is final.
    """

    folder: str
    name: str
    state: str
    note: str
    planned: int | None
    reached: int
    probes: int
    attempts: int
    outcomes: dict[str, int]
    devices: tuple[DeviceStatus, ...]
    set_aside: tuple[str, ...]
    last_attempt_s_ago: float | None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def read_status(folder: str) -> RunStatus:
    """Raises `SpecError` where there is no run folder, or one of a newer schema."""
    try:
        run = read_run(folder)
        history = run.journal.history()
    except (FolderError, SchemaTooNew, StoreError) as error:
        raise SpecError(str(error)) from None
    last = _last_attempts(history)
    kinds = {past.device_kind for past in history if past.device_kind is not None}
    measured = [past for past in last if past.cell.purpose == "measure"]
    now = time.time()
    ended = [past.started_at + past.duration_s for past in history]
    return RunStatus(
        folder=folder,
        name=run.manifest.name if run.manifest else run.spec.name if run.spec else "unknown",
        state=run.manifest.state if run.manifest else "unknown",
        note=run.manifest.sessions[-1].note if run.manifest and run.manifest.sessions else "",
        planned=len(expand(run.spec)) * max(len(kinds), 1) if run.spec else None,
        reached=sum(past.outcome not in _OPEN for past in measured),
        probes=len(last) - len(measured),
        attempts=len(history),
        outcomes=dict(Counter(past.outcome.value for past in last).most_common()),
        devices=_devices(history, now),
        set_aside=tuple(part.name for part in run.journal.set_aside),
        last_attempt_s_ago=now - max(ended) if ended else None,
    )


def _last_attempts(history: list[Past]) -> list[Past]:
    last: dict[tuple[str, str | None], Past] = {}
    for past in history:
        key = (past.cell_id, past.device_kind)
        if key not in last or last[key].attempt <= past.attempt:
            last[key] = past
    return list(last.values())


def _devices(history: list[Past], now: float) -> tuple[DeviceStatus, ...]:
    by_uuid: dict[str, list[Past]] = {}
    for past in history:
        if past.device_uuid is not None:
            by_uuid.setdefault(past.device_uuid, []).append(past)
    return tuple(
        DeviceStatus(
            uuid=uuid,
            kind=pasts[-1].device_kind or "unknown",
            node=pasts[-1].node or "unknown",
            attempts=len(pasts),
            last_ended_s_ago=now - max(past.started_at + past.duration_s for past in pasts),
        )
        for uuid, pasts in sorted(by_uuid.items())
    )
