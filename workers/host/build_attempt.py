"""From what was seen of a child to its attempt. Pure but for the sampler's record."""

from dataclasses import dataclass, replace

from workers.attempt import Attempt, Failure, Measured, Phase, Sample
from workers.cell import Lease
from workers.host import error_kinds
from workers.host.devices import Slot
from workers.host.supervisor import Seen
from workers.meters.sampler import Sampler, Window
from workers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`received_s`, `started_s`, `ended_s`: `time.monotonic()`; `started_at`: since the epoch."""

    lease: Lease
    slot: Slot
    seen: Seen
    received_s: float
    started_s: float
    started_at: float
    ended_s: float
    last_output: str
    kernel_oom_kill: bool


def conclude(record: Record, sampler: Sampler) -> Attempt:
    seen, finished = record.seen, record.seen.finished
    outcome, failure = judge(seen, record.last_output, kernel_oom_kill=record.kernel_oom_kill)
    samples, window = _samples(record, sampler)
    peak_device_bytes, peak_process_bytes = _peaks(record, samples)
    return Attempt(
        lease_id=record.lease.lease_id,
        cell=record.lease.cell,
        attempt=record.lease.attempt,
        outcome=outcome,
        phase=seen.phase,
        device=record.slot.device,
        started_at=record.started_at,
        duration_s=record.ended_s - record.received_s,
        measured=finished.measured if finished is not None else _partly(seen),
        failure=failure,
        peak_device_bytes=peak_device_bytes,
        peak_process_bytes=peak_process_bytes,
        context_bytes=seen.context_bytes,
        sample_interval_p50_s=window.interval_p50_s,
        sample_interval_p99_s=window.interval_p99_s,
        first_model_call_s=seen.opened_s - record.received_s if seen.opened_s is not None else None,
        samples=samples,
        steps=tuple(seen.steps),
        scores=finished.scores if finished is not None else (),
        output_ids=finished.output_ids if finished is not None else (),
    )


def judge(seen: Seen, last_output: str, *, kernel_oom_kill: bool) -> tuple[Outcome, Failure | None]:
    """The child's own word counts first, then why the host ended it, then how it died."""
    if seen.finished is not None:
        failure = seen.finished.failure
        return seen.finished.outcome, replace(
            failure, last_output=last_output
        ) if failure is not None else None
    if seen.ended_by_us is not None:
        ours = seen.ended_by_us
        failure = Failure(
            error_type="EndedByHost",
            error_message=ours.message,
            last_output=last_output,
            stack_dump=ours.stack_dump,
        )
        return ours.outcome, _with_memory(failure, seen) if ours.outcome.is_device_oom else failure
    if seen.ended is None:
        message = f"the fork server went away: {seen.server_died}"
        return Outcome.INFRA_ERROR, Failure(
            error_type="ForkServerError", error_message=message, last_output=last_output
        )
    outcome, signal, exit_code = error_kinds.of_death(seen.ended.status, kernel_oom_kill=kernel_oom_kill)
    how = f"killed by signal {signal}" if signal is not None else f"exit code {exit_code} without a result"
    return outcome, Failure(
        error_type="ProcessDied",
        error_message=f"{how} ({seen.phase}, {seen.produced} tokens)",
        signal=signal,
        exit_code=exit_code,
        last_output=last_output,
    )


def _with_memory(failure: Failure, seen: Seen) -> Failure:
    last = seen.steps[-1] if seen.steps else None
    return replace(
        failure,
        oom_token_index=seen.produced if seen.phase is Phase.DECODE else None,
        oom_allocated_bytes=last.allocated_bytes if last else None,
        oom_reserved_bytes=last.reserved_bytes if last else None,
    )


def _partly(seen: Seen) -> Measured:
    kv_cache_bytes = seen.steps[-1].kv_cache_bytes if seen.steps else None
    return Measured(new_tokens=seen.produced, kv_cache_bytes=kv_cache_bytes)


def _samples(record: Record, sampler: Sampler) -> tuple[tuple[Sample, ...], Window]:
    """From the moment the limits were in force to the end of the run; what comes after it counts nowhere."""
    seen = record.seen
    if seen.limited is None:
        return (), Window((), None, None)
    ended_s = seen.finished.ended_s if seen.finished is not None else record.ended_s
    window = sampler.window(seen.limited.at_s, ended_s)
    at_start = seen.limited.data_bytes
    samples = tuple(
        Sample(
            t_s=reading.t_s - record.started_s,
            device_used_bytes=None
            if reading.device_bytes is None
            else record.slot.used_bytes(reading.device_bytes, at_start),
            process_used_bytes=reading.process_bytes,
        )
        for reading in window.readings
    )
    return samples, window


def _peaks(record: Record, samples: tuple[Sample, ...]) -> tuple[int | None, int | None]:
    """Of the run: device, process. A load may hold more for an instant, seen by one run and missed by the next.

    A child that never came to its run: of whatever it did. The child's own exact figure overrides the samples.
    """
    seen = record.seen
    if seen.prefill_s is not None:
        begun_s = seen.prefill_s - record.started_s
        # Only changes are kept: what was in force when the run began is the last sample before it.
        before = tuple(s for s in samples if s.t_s < begun_s)[-1:]
        samples = before + tuple(s for s in samples if s.t_s >= begun_s)
    device = [s.device_used_bytes for s in samples if s.device_used_bytes is not None]
    process = [s.process_used_bytes for s in samples if s.process_used_bytes is not None]
    exact = seen.finished.data_peak_bytes if seen.finished is not None else None
    return exact if exact is not None else max(device, default=None), max(process, default=None)
