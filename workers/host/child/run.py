"""Runs one cell in a process of its own: limits -> load -> open -> warm up -> run. Reports each step to its host.

An exception is told in the last event, `Finished`. A process that dies before it is left for the host to explain.
"""

import os
import time
import traceback
from pkgutil import resolve_name

import torch

from workers import error_kinds
from workers.attempt import Failure, Phase
from workers.engines import open_session
from workers.engines.preflight import refuse_by_config, refuse_by_machine
from workers.engines.session import Session
from workers.error_kinds import Raised
from workers.host.child.cell_run import CellRun
from workers.host.child.checks import (
    check_ids,
    check_in_effect,
    check_length,
    check_positions,
    into_vocabulary,
)
from workers.host.child.cpu import CpuDevice
from workers.host.child.cuda import CudaDevice
from workers.host.child.device import ChildDevice
from workers.host.child.failure import outcome_and_failure
from workers.host.child.limits import small_thread_stacks
from workers.host.child.outputs import ids_sha256
from workers.host.child.recorder import RunRecorder
from workers.host.child.token_ids import reading_ids
from workers.host.child.workloads.closeness import twin_of
from workers.host.events import ContextReady, Event, Finished, Limited, Opened, Produced, Request, encode
from workers.meters.bandwidth import copy_bandwidth, matmul_flops
from workers.models import LoadError
from workers.models.load import LoadedModel, load_model
from workers.models.read_weights import step_weights_bytes
from workers.models.shard import Shard
from workers.outcome import Outcome

#: A call that waits for another process ends so long after the host would have ended both. The host knows which one hung.
_AFTER_THE_HOST_S = 60.0


def prepare(*, is_cpu: bool) -> ChildDevice:
    """Take what any cell needs of its process, before there is a cell. Call once per process."""
    return CpuDevice() if is_cpu else CudaDevice()


def run_cell(request: Request, events_fd: int, device: ChildDevice) -> None:
    """Run the cell on `device` and send events to `events_fd`, the last of which is `Finished`."""

    def send(event: Event) -> None:
        line = memoryview(encode(event))
        while line:
            line = line[os.write(events_fd, line) :]

    length = request.lease.cell.length
    recorder = RunRecorder(send, request.started_s, length, device.enter, device.allocator_bytes)
    run = CellRun(request, device, send, recorder)
    failure: Failure | None
    try:
        produced = _run(run)
    except Exception as error:
        ended_s = time.monotonic()
        device.note_failure()
        outcome, failure = _explain(run, error)
    else:
        ended_s = recorder.entered_s(Phase.DONE) or time.monotonic()
        outcome, failure = check_length(produced, length)
        _measure_rulers_after(run)
    send(
        Finished(
            outcome=outcome,
            ended_s=ended_s,
            measured=run.measured,
            failure=failure,
            data_peak_bytes=device.data_peak_bytes,
            workload=run.cell.workload,
            results=run.results,
            output_ids=run.output_ids,
        )
    )


def _run(run: CellRun) -> int:
    """Returns how many tokens were produced, or scored."""
    cell = run.request.lease.cell
    ranks = run.request.ranks
    if ranks.count != cell.devices:
        raise LoadError(f"the cell is for {cell.devices} devices, and got {ranks.count}")
    refuse_by_config(cell)
    refuse_by_machine(cell)
    with reading_ids(cell, beat=lambda: run.send(Produced(0))) as ids:
        _set_up(run)
        run.recorder.phase(Phase.LOAD)
        target, draft = _load(run)
        run.recorder.phase(Phase.PREPARE)
        ids_T = ids()
    produced = _run_loaded(run, target, draft, ids_T)
    ranks.leave()
    return produced


def _set_up(run: CellRun) -> None:
    """Everything that precedes the first weight: threads, limits, context."""
    torch.set_num_threads(run.request.threads)
    device = run.device
    is_timed = _is_timed(run)
    if is_timed and device.is_cpu:
        run.note(
            copy_bandwidth_bytes_per_s=copy_bandwidth(device.torch_device), matmul_flops_per_s=matmul_flops()
        )
    _join(run)
    held_bytes = device.set_limits(run.request)
    run.send(Limited(time.monotonic(), held_bytes))
    run.send(ContextReady(device.create_context()))
    if is_timed and not device.is_cpu:
        run.note(copy_bandwidth_bytes_per_s=copy_bandwidth(device.torch_device))


def _join(run: CellRun) -> None:
    """Meet the other processes of the cell. On a CPU what that takes is no part of the cell's data; a card is metered as a
    whole."""
    ranks, lease = run.request.ranks, run.request.lease
    if ranks.count > 1 and run.device.is_cpu:
        small_thread_stacks()
    ranks.join(is_cpu=run.device.is_cpu, timeout_s=lease.stall_timeout_s + _AFTER_THE_HOST_S)


def _is_timed(run: CellRun) -> bool:
    return run.cell.purpose == "measure" and run.cell.workload_spec.measures_speed


def _measure_rulers_after(run: CellRun) -> None:
    """Once more at the end: what disturbed the run may not have been there at its start."""
    if not _is_timed(run):
        return
    run.note(copy_bandwidth_after_bytes_per_s=copy_bandwidth(run.device.torch_device))
    if run.device.is_cpu:
        run.note(matmul_after_flops_per_s=matmul_flops())


def _load(run: CellRun) -> tuple[LoadedModel, LoadedModel | None]:
    cell, device, ranks = run.request.lease.cell, run.device.torch_device, run.request.ranks
    shard = Shard(ranks.index, ranks.count, cell.engine) if ranks.count > 1 else None
    target = load_model(cell.model.target, cell.model, device, cell.seed, shard)
    draft = None
    if cell.mode_spec.decoder.needs_draft:
        if cell.model.draft is None:
            raise LoadError(f"mode {cell.mode} needs a draft model")
        draft = load_model(cell.model.draft, cell.model, device, cell.seed, shard)
    loaded = [m for m in (target, draft) if m is not None]
    run.note(
        load_s=sum(m.load_s for m in loaded),
        load_was_warm=target.load_was_warm,
        weights_bytes=sum(m.weights_bytes for m in loaded),
        step_weights_bytes=step_weights_bytes(cell, target, draft),
        max_positions=target.max_positions,
    )
    return target, draft


def _run_loaded(run: CellRun, target: LoadedModel, draft: LoadedModel | None, ids_T: torch.Tensor) -> int:
    cell = run.request.lease.cell
    ids_T, mapped = into_vocabulary(target, ids_T)
    run.note(prompt_sha256=ids_sha256(ids_T), ids_mapped=mapped or None)
    prepare_s = time.monotonic()
    check_ids(cell, target, ids_T)
    check_positions(cell, target)
    session = open_session(cell, target, draft)
    if twin := twin_of(cell):
        run.open_twin = lambda: open_session(twin, target, None)
    in_effect = session.in_effect()
    run.note(in_effect=in_effect)
    check_in_effect(cell, in_effect)
    prompt_BT = ids_T[: cell.workload_spec.text_tokens(cell)].repeat(cell.batch_size, 1)
    run.send(Opened(time.monotonic()))
    if cell.purpose == "measure":
        _warm_up(session, prompt_BT)
    run.device.begin_run()
    run.note(prepare_s=time.monotonic() - prepare_s)
    run.recorder.phase(Phase.PREFILL)
    produced: int = resolve_name(cell.workload_spec.run)(run, session, ids_T)
    return produced


def _warm_up(session: Session, prompt_BT: torch.Tensor) -> None:
    """Passes over an out-of-memory: the run will meet it too, and tells how far it came."""
    try:
        session.warm_up(prompt_BT)
    except Exception as error:
        if not error_kinds.is_memory_error(Raised.of(error)):
            raise


def _explain(run: CellRun, error: Exception) -> tuple[Outcome, Failure]:
    recorder = run.recorder
    if recorder.current is not Phase.DONE:
        run.device.end_run()
    traceback.print_exc()
    outcome, failure = outcome_and_failure(error, recorder, run.device)
    if outcome is not Outcome.GPU_FAULT:  # every call would fail once more
        run.note(**run.device.peaks()._asdict())
    run.note(new_tokens=recorder.produced, kv_cache_bytes=recorder.kv_cache_bytes())
    return outcome, failure
