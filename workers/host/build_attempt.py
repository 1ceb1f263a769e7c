"""Builds the attempt of a child that has ended, from what was observed of it and from the sampler's record."""

from dataclasses import replace

from workers import error_kinds
from workers.attempt import Attempt, Failure, Measured, Phase, Sample
from workers.cell import Lease
from workers.host.devices import Slot
from workers.host.supervisor import Observations
from workers.meters.roofline import roofline_fraction
from workers.meters.sampler import Sampler, Window
from workers.meters.state_sampler import StateSampler
from workers.outcome import Outcome


def build_attempt(
    lease: Lease,
    slot: Slot,
    seen: Observations,
    sampler: Sampler,
    state: StateSampler,
    *,
    received_s: float,
    started_at: float,
) -> Attempt:
    """Build the attempt of `lease` from what was observed of its child, which has ended.

    `received_s`: `time.monotonic()` when the host got the lease. `started_at`: the child's start, since the epoch.
    """
    finished = seen.finished
    assert seen.ended_s is not None
    outcome, failure = outcome_and_failure(seen)
    samples, window = _samples(slot, seen, sampler)
    peak_device_bytes, peak_process_bytes = _peaks(seen, samples)
    return Attempt(
        lease_id=lease.lease_id,
        cell=lease.cell,
        attempt=lease.attempt,
        outcome=outcome,
        phase=seen.phase,
        device=slot.device,
        started_at=started_at,
        duration_s=seen.ended_s - received_s,
        measured=_with_roofline(finished.measured, seen, lease)
        if finished is not None
        else _measured_so_far(seen),
        machine=state.state(seen.produced * lease.cell.batch_size),
        failure=failure,
        peak_device_bytes=peak_device_bytes,
        peak_process_bytes=peak_process_bytes,
        context_bytes=seen.context_bytes,
        sample_interval_p50_s=window.interval_p50_s,
        sample_interval_p99_s=window.interval_p99_s,
        first_model_call_s=seen.opened_s - received_s if seen.opened_s is not None else None,
        samples=samples,
        steps=tuple(seen.steps),
        results=finished.results if finished is not None else (),
        output_ids=finished.output_ids if finished is not None else (),
    )


def _with_roofline(measured: Measured, seen: Observations, lease: Lease) -> Measured:
    fraction = roofline_fraction(measured, seen.steps, lease.cell.batch_size)
    return replace(measured, roofline_fraction=fraction)


def outcome_and_failure(seen: Observations) -> tuple[Outcome, Failure | None]:
    """The child's own last event counts first, then why the host ended it, then how it died."""
    if seen.finished is not None:
        failure = seen.finished.failure
        return seen.finished.outcome, replace(
            failure, last_output=seen.last_output
        ) if failure is not None else None
    if seen.ended_by_us is not None:
        ours = seen.ended_by_us
        failure = Failure(
            error_type="EndedByHost",
            error_message=ours.message,
            last_output=seen.last_output,
            stack_dump=ours.stack_dump,
        )
        return ours.outcome, _with_memory(failure, seen) if ours.outcome.is_device_oom else failure
    if seen.ended is None:
        message = f"the fork server went away: {seen.server_died}"
        return Outcome.INFRA_ERROR, Failure(
            error_type="ForkServerError", error_message=message, last_output=seen.last_output
        )
    outcome, signal, exit_code = error_kinds.of_death(seen.ended.status, kernel_oom_kill=seen.kernel_oom_kill)
    how = f"killed by signal {signal}" if signal is not None else f"exit code {exit_code} without a result"
    return outcome, Failure(
        error_type="ProcessDied",
        error_message=f"{how} ({seen.phase}, {seen.produced} tokens)",
        signal=signal,
        exit_code=exit_code,
        last_output=seen.last_output,
    )


def _with_memory(failure: Failure, seen: Observations) -> Failure:
    last = seen.steps[-1] if seen.steps else None
    return replace(
        failure,
        oom_token_index=seen.produced if seen.phase is Phase.DECODE else None,
        oom_allocated_bytes=last.allocated_bytes if last else None,
        oom_reserved_bytes=last.reserved_bytes if last else None,
    )


def _measured_so_far(seen: Observations) -> Measured:
    kv_cache_bytes = seen.steps[-1].kv_cache_bytes if seen.steps else None
    return Measured(new_tokens=seen.produced, kv_cache_bytes=kv_cache_bytes)


def _samples(slot: Slot, seen: Observations, sampler: Sampler) -> tuple[tuple[Sample, ...], Window]:
    """Return what was sampled from the moment the limits were in force to the end of the run. What comes after it
    counts nowhere."""
    if seen.limited is None or seen.ended_s is None:
        return (), Window((), None, None)
    ended_s = seen.finished.ended_s if seen.finished is not None else seen.ended_s
    window = sampler.window(seen.limited.at_s, ended_s)
    at_start = seen.limited.data_bytes
    samples = tuple(
        Sample(
            t_s=reading.t_s - seen.started_s,
            device_used_bytes=None
            if reading.device_bytes is None
            else slot.used_bytes(reading.device_bytes, at_start),
            process_used_bytes=reading.process_bytes,
        )
        for reading in window.readings
    )
    return samples, window


def _peaks(seen: Observations, samples: tuple[Sample, ...]) -> tuple[int | None, int | None]:
    """Return the peaks of the run, of the device and of the process.

    The load does not count: it may hold more for an instant, which one run sees and the next misses. Of a child that
    never came to its run, everything counts. The child's own exact figure overrides the samples.
    """
    if seen.prefill_s is not None:
        begun_s = seen.prefill_s - seen.started_s
        # Only changes are kept: what was in force when the run began is the last sample before it.
        before = tuple(s for s in samples if s.t_s < begun_s)[-1:]
        samples = before + tuple(s for s in samples if s.t_s >= begun_s)
    device = [s.device_used_bytes for s in samples if s.device_used_bytes is not None]
    process = [s.process_used_bytes for s in samples if s.process_used_bytes is not None]
    exact = seen.finished.data_peak_bytes if seen.finished is not None else None
    return exact if exact is not None else max(device, default=None), max(process, default=None)
