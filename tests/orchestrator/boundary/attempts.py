"""Attempts as a device would hand them back, for tests that need no device."""

from workers.attempt import Attempt, Device, Failure, Measured, Phase, Step
from workers.cell import Cell
from workers.outcome import Outcome

CPU = Device(kind="cpu", uuid="cpu-0", node="n", total_bytes=4 * 2**30)

_PHASES = {
    Outcome.OK: Phase.DONE,
    Outcome.OOM_DECODE: Phase.DECODE,
    Outcome.OOM_PREFILL: Phase.PREFILL,
    Outcome.OOM_LOAD: Phase.LOAD,
}


def attempt_of(
    cell: Cell,
    outcome: Outcome,
    *,
    index: int | None = None,
    kv_cache_bytes: int | None = None,
    device: Device | None = CPU,
    number: int = 1,
    steps: tuple[Step, ...] = (),
    **failure: int,
) -> Attempt:
    """`index`: the new token at which memory ran out."""
    produced = cell.length if outcome is Outcome.OK else index or 0
    return Attempt(
        lease_id=f"{cell.cell_id}.{number}",
        cell=cell,
        attempt=number,
        outcome=outcome,
        phase=_PHASES.get(outcome, Phase.DECODE),
        device=device,
        started_at=0.0,
        duration_s=1.0,
        measured=Measured(new_tokens=produced, kv_cache_bytes=kv_cache_bytes),
        failure=None
        if outcome is Outcome.OK
        else Failure(error_type="E", error_message="m", oom_token_index=index, **failure),
        steps=steps,
    )
