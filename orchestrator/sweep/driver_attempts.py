"""Builds the attempts that no device hands back: lost, cancelled, pruned, too large to load, quarantined."""

from workers.attempt import Attempt, Device, Failure, Phase
from workers.cell import Cell, Lease
from workers.outcome import Outcome
from workers.units import duration_text, round_size_text, size_text


def lost(
    lease: Lease, device: Device, outcome: Outcome, reason: str, started_at: float, now: float
) -> Attempt:
    """The device or its host went away while it ran `lease`. `outcome`: infra_error, or oom_host when that is proved."""
    error_type = "HostOutOfMemory" if outcome is Outcome.OOM_HOST else "ActorLost"
    return _attempt(
        lease, device, outcome, Failure(error_type=error_type, error_message=reason), started_at, now
    )


def cancelled(lease: Lease, device: Device, reason: str, started_at: float, now: float) -> Attempt:
    failure = Failure(error_type="Cancelled", error_message=reason)
    return _attempt(lease, device, Outcome.CANCELLED, failure, started_at, now)


def pruned(
    cell: Cell, cell_id: str, attempt: int, implied_by: Attempt, seconds_saved: float, now: float
) -> Attempt:
    """The cell would run out of memory as `implied_by` did, on the same kind of device."""
    failure = Failure(
        error_type="Pruned",
        error_message=f"implied by {implied_by.outcome} of cell {implied_by.cell.cell_id} at length "
        f"{implied_by.cell.length}; saved about {duration_text(seconds_saved)} of device time",
    )
    return Attempt(
        lease_id=f"{cell_id}.{attempt}.pruned",
        cell=cell,
        attempt=attempt,
        outcome=Outcome.PRUNED,
        phase=Phase.SPAWN,
        device=implied_by.device,
        started_at=now,
        duration_s=0.0,
        failure=failure,
    )


def too_large(
    cell: Cell, cell_id: str, attempt: int, needed_bytes: int, device: Device, now: float
) -> Attempt:
    """The weights of the cell's models alone are larger than its budget: `device`, of its kind, is not touched."""
    assert cell.budget is not None
    failure = Failure(
        error_type="PredictedOutOfMemory",
        error_message=f"predicted, no device touched: the weights take {size_text(needed_bytes)}, the budget is "
        f"{round_size_text(cell.budget)}",
        oom_requested_bytes=needed_bytes,
        oom_free_bytes=cell.budget,
    )
    return Attempt(
        lease_id=f"{cell_id}.{attempt}.predicted",
        cell=cell,
        attempt=attempt,
        outcome=Outcome.OOM_LOAD,
        phase=Phase.SPAWN,
        device=device,
        started_at=now,
        duration_s=0.0,
        failure=failure,
    )


def unplaceable(cell: Cell, cell_id: str, attempt: int, most: int, device: Device, now: float) -> Attempt:
    """The cell asks for more devices of one node than any node has: `most`, of the kind of `device`."""
    failure = Failure(
        error_type="TooFewDevices",
        error_message=f"{cell.devices} {device.kind} devices of one node are asked for; no node has more than {most}",
    )
    return Attempt(
        lease_id=f"{cell_id}.{attempt}.unplaceable",
        cell=cell,
        attempt=attempt,
        outcome=Outcome.UNAVAILABLE,
        phase=Phase.SPAWN,
        device=device,
        started_at=now,
        duration_s=0.0,
        failure=failure,
    )


def quarantined(last: Attempt, cell_id: str, attempt: int, crashes: int, now: float) -> Attempt:
    """The cell ends its process every time. The evidence is that of its last attempt."""
    evidence = last.failure
    message = (
        f"ended its process {crashes} times; last: {evidence.error_message if evidence else last.outcome}"
    )
    return Attempt(
        lease_id=f"{cell_id}.{attempt}.quarantined",
        cell=last.cell,
        attempt=attempt,
        outcome=Outcome.QUARANTINED,
        phase=last.phase,
        device=last.device,
        started_at=now,
        duration_s=0.0,
        failure=Failure(
            error_type="Quarantined",
            error_message=message,
            signal=evidence.signal if evidence else None,
            exit_code=evidence.exit_code if evidence else None,
            last_output=evidence.last_output if evidence else "",
            stack_dump=evidence.stack_dump if evidence else None,
        ),
    )


def _attempt(
    lease: Lease, device: Device, outcome: Outcome, failure: Failure, started_at: float, now: float
) -> Attempt:
    return Attempt(
        lease_id=lease.lease_id,
        cell=lease.cell,
        attempt=lease.attempt,
        outcome=outcome,
        phase=Phase.SPAWN,
        device=device,
        started_at=started_at,
        duration_s=max(0.0, now - started_at),
        failure=failure,
    )
