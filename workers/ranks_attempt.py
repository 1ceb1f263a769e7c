"""Makes one attempt of the attempts of a cell's processes, one for each of its devices. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from workers import error_kinds
from workers.attempt import Attempt, DeviceShare, Failure
from workers.outcome import Outcome


def attempt_of_ranks(attempts: Sequence[Attempt]) -> Attempt:
    """Return the cell's attempt. `attempts`: of rank 0, 1, ..., all of one lease.

    Where processes ended badly, the outcome is that of the first one that did so by itself: not because another one was
    gone, and not while it waited for one that hung.
    """
    if len(attempts) == 1:
        return attempts[0]
    cause = _cause(attempts)
    base = attempts[0] if cause is None else attempts[cause]
    began = min(attempt.started_at for attempt in attempts)
    return replace(
        base,
        started_at=began,
        duration_s=max(map(_ended_at, attempts)) - began,
        failure=_named(base, cause, len(attempts)),
        measured=replace(
            base.measured,
            peak_allocated_bytes=_most(a.measured.peak_allocated_bytes for a in attempts),
            peak_reserved_bytes=_most(a.measured.peak_reserved_bytes for a in attempts),
        ),
        peak_device_bytes=_most(a.peak_device_bytes for a in attempts),
        peak_process_bytes=_most(a.peak_process_bytes for a in attempts),
        devices=tuple(_share(attempt, rank == cause) for rank, attempt in enumerate(attempts)),
        device_dirty="; ".join(filter(None, (attempt.device_dirty for attempt in attempts))) or None,
    )


def _cause(attempts: Sequence[Attempt]) -> int | None:
    """The rank that ended the cell, None where all did their part."""
    ended = [rank for rank, attempt in enumerate(attempts) if attempt.outcome is not Outcome.OK]
    return min(ended, key=lambda rank: (_follows(attempts[rank]), _ended_at(attempts[rank])), default=None)


def _follows(attempt: Attempt) -> int:
    """How surely the end follows from that of another process. Where one hangs the others wait; the one that does not
    wait is the one."""
    failure = attempt.failure
    stacks = failure.stack_dump if failure is not None else None
    if attempt.outcome is Outcome.CANCELLED:
        return 3
    if (
        failure is not None
        and attempt.outcome is Outcome.CRASHED
        and error_kinds.lost_a_peer(failure.error_message)
    ):
        return 2
    return 1 if error_kinds.waits_for_a_peer(stacks) else 0


def _ended_at(attempt: Attempt) -> float:
    return attempt.started_at + attempt.duration_s


def _named(base: Attempt, cause: int | None, count: int) -> Failure | None:
    if base.failure is None or cause is None or base.device is None:
        return base.failure
    where = f"rank {cause} of {count}, {base.device.uuid}"
    return replace(base.failure, error_message=f"{where}: {base.failure.error_message}")


def _share(attempt: Attempt, ended_cell: bool) -> DeviceShare:
    measured, failure = attempt.measured, attempt.failure
    return DeviceShare(
        device_uuid=attempt.device.uuid if attempt.device is not None else "",
        outcome=attempt.outcome,
        phase=attempt.phase,
        ended_cell=ended_cell,
        error_message=failure.error_message if failure is not None else None,
        new_tokens=measured.new_tokens,
        tokens_per_s=measured.tokens_per_s,
        context_bytes=attempt.context_bytes,
        weights_bytes=measured.weights_bytes,
        kv_cache_bytes=measured.kv_cache_bytes,
        peak_device_bytes=attempt.peak_device_bytes,
        peak_process_bytes=attempt.peak_process_bytes,
        peak_allocated_bytes=measured.peak_allocated_bytes,
        peak_reserved_bytes=measured.peak_reserved_bytes,
    )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
