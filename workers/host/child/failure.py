"""Builds the evidence of a cell that ended in an exception, inside its process."""

from dataclasses import replace

from workers import error_kinds
from workers.attempt import Failure, Phase
from workers.error_kinds import Raised
from workers.host.child.device import ChildDevice
from workers.host.child.recorder import RunRecorder
from workers.outcome import Outcome

_MAX_MESSAGE = 4096


def outcome_and_failure(
    error: Exception, recorder: RunRecorder, device: ChildDevice
) -> tuple[Outcome, Failure]:
    """`recorder`: knows how far the run came. Call after `device.note_failure`."""
    phase = recorder.current
    raised = Raised.of(error)
    outcome = error_kinds.of_exception(raised, phase, is_cpu=device.is_cpu)
    failure = Failure(error_type=raised.types[0], error_message=raised.message[:_MAX_MESSAGE])
    if not error_kinds.is_memory_error(raised):
        return outcome, failure
    report = error_kinds.memory_report(raised.message)
    memory = device.at_failure(report.free)
    return outcome, replace(
        failure,
        oom_token_index=recorder.produced if phase is Phase.DECODE else None,
        oom_prompt_tokens=recorder.prompt_read if phase is Phase.PREFILL else None,
        oom_requested_bytes=report.requested,
        oom_free_bytes=memory.free,
        oom_allocated_bytes=memory.allocated,
        oom_reserved_bytes=memory.reserved,
        memory_snapshot=memory.snapshot,
    )
