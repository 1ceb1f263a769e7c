"""Makes the lease of a cell: an id, the attempt's number, and how long it may take."""

import secrets

from orchestrator.spec import SweepSpec
from orchestrator.sweep.work.item import WorkItem
from workers.cell import Engine, Lease

_MIN_TIME_LIMIT_S = 600.0
_TIME_FACTOR = 20.0
#: Fetching a model, reading a corpus and compiling report little progress.
_MIN_STALL_S: dict[Engine, float] = {"eager": 120.0, "graph": 300.0}
_STALL_STEPS = 20.0


def lease_for(item: WorkItem, attempt: int, step_s: float, spec: SweepSpec) -> Lease:
    """Return the lease. `step_s`: predicted time of the slowest step that reports progress.

    The limits are generous: predictions rank cells well, but their times may be wrong by a large factor. The sweep
    file overrides them.
    """
    time_limit = spec.time_limit_s or max(_MIN_TIME_LIMIT_S, _TIME_FACTOR * item.seconds)
    stall = spec.stall_timeout_s or max(_MIN_STALL_S[item.cell.engine], _STALL_STEPS * step_s)
    return Lease(
        lease_id=f"{item.key.cell_id}.{attempt}.{secrets.token_hex(4)}",
        cell=item.cell,
        attempt=attempt,
        time_limit_s=time_limit,
        stall_timeout_s=min(stall, time_limit),
        memory_snapshot=spec.memory_snapshot,
    )
