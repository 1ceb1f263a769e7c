"""One cell in a process of its own: limits -> load -> open -> warm up -> run; tells its host how far it has come.

Whatever goes wrong in Python is told in the last event; whatever ends the process is the host's to see.
"""

import hashlib
import os
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from workers.attempt import Failure, InEffect, Measured, Phase, ScoreBucket
from workers.cell import Cell
from workers.engines import open_session
from workers.engines.session import Generated, Session
from workers.host import error_kinds
from workers.host.child import limits
from workers.host.child.heap_reserve import take_heap_reserve
from workers.host.child.recorder import RunRecorder
from workers.host.child.token_ids import reading_ids
from workers.host.error_kinds import Raised
from workers.host.events import ContextReady, Event, Finished, Limited, Opened, Produced, Request, encode
from workers.meters.process import DataPeak, ProcessMemory, own_data_and_stack, own_memory
from workers.models import LoadError
from workers.models.load import LoadedModel, load_model
from workers.modes import CachePolicy
from workers.outcome import Outcome
from workers.text.corpus import decode

_TEXT_CHARS = 400
_TEXT_TOKENS = 200
_MAX_MESSAGE = 4096
_MAX_HISTORY = 20_000
#: What most models on a CPU compute in.
_FIRST_DTYPE = torch.float32


class ContextLimit(Exception):
    """The run would need positions that the model never learned. One line: needed, there."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a process has taken before it has a cell, in bytes.

    `data`, `data_and_stack`: held before that. On a CPU the rest counts against the budget, as a context does on a card:
    room for small objects, and `context_bytes` of the math libraries, set up for `_FIRST_DTYPE`. `settled`: data with
    all of that.
    """

    data: int
    data_and_stack: int
    context_bytes: int = 0
    settled: int = 0

    def before_the_limit(self) -> "Prepared":
        """What came since is the cell's account of itself (a time for each token), which counts nowhere."""
        since = own_memory().data - self.settled
        return replace(self, data=self.data + since, data_and_stack=self.data_and_stack + since)


@dataclass
class _State:
    """What is known of the cell so far, so that a failure can tell it too."""

    request: Request
    prepared: Prepared
    send: Callable[[Event], None]
    recorder: RunRecorder
    measured: Measured = field(default_factory=Measured)
    card: limits.EmulatedCard | None = None
    data_peak: DataPeak | None = None
    data_peak_bytes: int | None = None
    output_ids: tuple[int, ...] = ()
    scores: tuple[ScoreBucket, ...] = ()

    def note(self, **fields: object) -> None:
        self.measured = replace(self.measured, **fields)  # type: ignore[arg-type]


def prepare(*, is_cpu: bool) -> Prepared:
    """What any cell needs of its process, before there is a cell. Once per process. On a card it waits for the cell:
    the device must be clean between two."""
    limits.configure_malloc()
    prepared = Prepared(own_memory().data, own_data_and_stack())
    if not is_cpu:
        return prepared
    take_heap_reserve(prepared.data)
    torch.set_num_threads(1)  # any more start with the cell
    context_bytes = limits.set_up_cpu(_FIRST_DTYPE)
    return replace(prepared, context_bytes=context_bytes, settled=own_memory().data)


def run_cell(request: Request, events_fd: int, prepared: Prepared) -> None:
    """Run the cell, send events to `events_fd`, the last of which is `Finished`."""

    def send(event: Event) -> None:
        line = memoryview(encode(event))
        while line:
            line = line[os.write(events_fd, line) :]

    def on_phase(phase: Phase) -> None:
        if phase is Phase.PREFILL and request.is_cpu and state.data_peak is None:
            state.data_peak = DataPeak()
        if state.card is not None:
            state.card.follow()

    def allocator_bytes() -> tuple[int | None, int | None]:
        if request.is_cpu:
            return None, None
        if state.card is not None:
            state.card.follow()
        return _cuda_bytes()

    recorder = RunRecorder(
        send,
        request.started_s,
        request.lease.cell.length,
        on_phase,
        allocator_bytes,
    )
    state = _State(request, prepared, send, recorder)
    failure: Failure | None
    try:
        produced = _run(state)
    except Exception as error:
        ended_s = time.monotonic()
        limit = limits.lift_data_limit()
        outcome, failure = _explain(state, error, limit, own_memory())
    else:
        ended_s = recorder.entered_s(Phase.DONE) or time.monotonic()
        outcome, failure = _verify(produced, request.lease.cell.length)
    send(
        Finished(
            outcome=outcome,
            ended_s=ended_s,
            measured=state.measured,
            failure=failure,
            data_peak_bytes=state.data_peak_bytes,
            scores=state.scores,
            output_ids=state.output_ids,
        )
    )


def _run(state: _State) -> int:
    """Returns how many tokens were produced, or scored."""
    cell = state.request.lease.cell
    with reading_ids(cell, beat=lambda: state.send(Produced(0))) as ids:
        device = _set_up(state)
        state.recorder.phase(Phase.LOAD)
        target, draft = _load(state, device)
        state.recorder.phase(Phase.PREPARE)
        ids_T = ids()
    return _run_loaded(state, target, draft, ids_T)


def _load(state: _State, device: torch.device) -> tuple[LoadedModel, LoadedModel | None]:
    cell = state.request.lease.cell
    target = load_model(cell.model.target, cell.model, device, cell.seed)
    draft = None
    if cell.mode_spec.speculative:
        if cell.model.draft is None:
            raise LoadError(f"mode {cell.mode} needs a draft model")
        draft = load_model(cell.model.draft, cell.model, device, cell.seed)
    loaded = [m for m in (target, draft) if m is not None]
    state.note(
        load_s=sum(m.load_s for m in loaded),
        load_was_warm=target.load_was_warm,
        weights_bytes=sum(m.weights_bytes for m in loaded),
        max_positions=target.max_positions,
    )
    return target, draft


def _run_loaded(state: _State, target: LoadedModel, draft: LoadedModel | None, ids_T: torch.Tensor) -> int:
    request, recorder = state.request, state.recorder
    cell = request.lease.cell
    state.note(prompt_sha256=_sha256(ids_T))
    prepare_s = time.monotonic()
    _check_positions(cell, target)
    session = open_session(cell, target, draft)
    in_effect = session.in_effect()
    state.note(in_effect=in_effect)
    check_in_effect(cell, in_effect)
    prompt_BT = ids_T.repeat(cell.batch_size, 1)
    state.send(Opened(time.monotonic()))
    if cell.purpose == "measure":
        _warm_up(session, prompt_BT)
    if not request.is_cpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    state.note(prepare_s=time.monotonic() - prepare_s)
    recorder.phase(Phase.PREFILL)
    if cell.workload == "score":
        state.scores = tuple(session.score(ids_T, recorder))
        produced = sum(score.num_tokens for score in state.scores)
        _finish(state, produced)
        return produced
    return _generate(state, session, prompt_BT)


def _warm_up(session: Session, prompt_BT: torch.Tensor) -> None:
    """Too little memory here is too little for the run, too, which is told how far it came."""
    try:
        session.warm_up(prompt_BT)
    except Exception as error:
        if not error_kinds.is_memory_error(Raised.of(error)):
            raise


def _verify(produced: int, length: int) -> tuple[Outcome, Failure | None]:
    """A run that stopped early, or went on, is not a fast or a slow one."""
    if produced == length:
        return Outcome.OK, None
    return Outcome.LENGTH_SHORT, Failure(
        error_type="LengthShort", error_message=f"{produced} tokens, {length} were asked for"
    )


def _set_up(state: _State) -> torch.device:
    """Limits, threads and context: everything that precedes the first weight."""
    request = state.request
    cell, budget = request.lease.cell, request.lease.cell.budget
    dtype: torch.dtype = getattr(torch, cell.model.dtype)
    torch.set_num_threads(request.threads)
    if request.is_cpu:
        state.prepared = state.prepared.before_the_limit()
        limits.limit_data(state.prepared.data + (request.total_bytes if budget is None else budget))
        state.send(Limited(time.monotonic(), state.prepared.data_and_stack))
        is_set_up = dtype is _FIRST_DTYPE and request.threads == 1
        more_bytes = 0 if is_set_up else limits.set_up_cpu(dtype)
        state.send(ContextReady(state.prepared.context_bytes + more_bytes))
        return torch.device("cpu")
    state.send(Limited(time.monotonic(), 0))
    state.send(ContextReady(limits.set_up_cuda(dtype, request.idle_bytes)))
    if budget is not None:
        state.card = limits.EmulatedCard(budget, request.reserve_bytes, request.idle_bytes)
    if request.lease.memory_snapshot:
        torch.cuda.memory._record_memory_history(max_entries=_MAX_HISTORY)
    return torch.device("cuda", 0)


def _generate(state: _State, session: Session, prompt_BT: torch.Tensor) -> int:
    cell = state.request.lease.cell
    result = session.generate(prompt_BT, cell.length, state.recorder)
    state.output_ids = tuple(result.ids_BT[0].tolist())
    _finish(state, len(state.output_ids))
    state.note(
        eos_at=result.eos_at,
        output_sha256=_sha256(result.ids_BT[0]),
        draft_step_s=result.draft_step_s,
        verify_step_s=result.verify_step_s,
        **_speculation(result, len(state.output_ids)),
    )
    if state.output_ids:
        ends = state.output_ids[:_TEXT_TOKENS], state.output_ids[-_TEXT_TOKENS:]
        head, tail = decode(ends, cell.model.target, cell.model)
        state.note(text_head=head[:_TEXT_CHARS], text_tail=tail[-_TEXT_CHARS:])
    return len(state.output_ids)


def _finish(state: _State, produced: int) -> None:
    """The run is over: what comes now counts against no budget and enters no measurement."""
    recorder = state.recorder
    ended_s = time.monotonic()
    _end_data_peak(state)
    recorder.finish()
    state.note(new_tokens=produced, kv_cache_bytes=recorder.kv_cache_bytes(), **_cuda_peaks(state))
    recorder.phase(Phase.DONE)
    limits.lift_data_limit()
    timing = recorder.timing(state.request.lease.cell.batch_size, ended_s)
    state.note(**{name: getattr(timing, name) for name in timing.__slots__})


def _explain(
    state: _State, error: Exception, data_limit: int, at_failure: ProcessMemory
) -> tuple[Outcome, Failure]:
    recorder, is_cpu = state.recorder, state.request.is_cpu
    if recorder.current is not Phase.DONE:
        _end_data_peak(state)
    raised = Raised.of(error)
    outcome = error_kinds.of_exception(raised, recorder.current, is_cpu=is_cpu)
    traceback.print_exc()
    if outcome is not Outcome.GPU_FAULT:  # every call would fail once more
        state.note(**_cuda_peaks(state))
    state.note(new_tokens=recorder.produced, kv_cache_bytes=recorder.kv_cache_bytes())
    failure = Failure(error_type=raised.types[0], error_message=raised.message[:_MAX_MESSAGE])
    if not error_kinds.is_memory_error(raised):
        return outcome, failure
    report = error_kinds.memory_report(raised.message)
    allocated, reserved = (None, None) if is_cpu else _cuda_bytes()
    if is_cpu:
        allocated = at_failure.data - state.prepared.data
    return outcome, replace(
        failure,
        oom_token_index=recorder.produced if recorder.current is Phase.DECODE else None,
        oom_requested_bytes=report.requested,
        oom_free_bytes=max(0, data_limit - at_failure.data) if is_cpu else _card_free(state, report.free),
        oom_allocated_bytes=allocated,
        oom_reserved_bytes=reserved,
        memory_snapshot=_snapshot() if state.request.lease.memory_snapshot and not is_cpu else None,
    )


def check_in_effect(cell: Cell, found: InEffect) -> None:
    """Raises `LoadError` naming everything that the live objects do otherwise than the cell asks."""
    policy = cell.mode_spec.policy
    asked: dict[str, object] = {"dtype": cell.model.dtype, "repetition_penalty": cell.repetition_penalty}
    if policy is CachePolicy.FULL and cell.engine == "eager":
        asked["attn_implementation"] = cell.model.attn_implementation
    if policy is CachePolicy.STREAMING and cell.streaming is not None:
        asked |= {"sinks": cell.streaming.sinks, "window": cell.streaming.window}
    if cell.speculation is not None:
        asked["gamma"] = cell.speculation.gamma
    wrong = [
        f"{name} is {getattr(found, name)}, {value} was asked for"
        for name, value in asked.items()
        if getattr(found, name) != value
    ]
    if wrong:
        raise LoadError("in effect: " + "; ".join(wrong))


def _check_positions(cell: Cell, target: LoadedModel) -> None:
    """A model of learned absolute positions ends where its table does; on a GPU the overrun would poison the context.

    The last new token is never read. RoPE runs beyond its trained context; `max_positions` on record marks it.
    """
    learned = target.max_positions
    needed = cell.prompt_tokens + cell.length - (cell.workload == "generate")
    if cell.mode_spec.policy is not CachePolicy.FULL or learned is None or needed <= learned:
        return
    words = target.model.get_input_embeddings()
    for module in target.model.modules():
        if (
            isinstance(module, torch.nn.Embedding)
            and module is not words
            and 0 <= module.num_embeddings - learned <= 2
        ):
            raise ContextLimit(
                f"{target.name} has learned positions for {learned} tokens, {needed} are needed"
            )


def _speculation(result: Generated, produced: int) -> dict[str, float | None]:
    from_rounds = produced if result.prompt_is_a_round else produced - 1
    return {
        "tokens_per_step": from_rounds / result.rounds if result.rounds else None,
        "acceptance_rate": (result.accepted or 0) / result.drafted if result.drafted else None,
    }


def _sha256(ids_T: torch.Tensor) -> str:
    """Of the ids as little-endian int32."""
    return hashlib.sha256(ids_T.cpu().numpy().astype(np.dtype("<i4")).tobytes()).hexdigest()


def _card_free(state: _State, reported: int | None) -> int | None:
    """Of the emulated card, where there is one; torch reports the real one's."""
    return (
        reported if state.card is None else max(0, state.card.allocator_bytes - torch.cuda.memory_reserved())
    )


def _end_data_peak(state: _State) -> None:
    if state.data_peak is not None:
        state.data_peak_bytes = state.data_peak.read() - state.prepared.data


def _cuda_bytes() -> tuple[int, int]:
    stats = torch.cuda.memory_stats()
    return stats["allocated_bytes.all.current"], stats["reserved_bytes.all.current"]


def _cuda_peaks(state: _State) -> dict[str, int]:
    if state.request.is_cpu or not torch.cuda.is_initialized():
        return {}
    stats = torch.cuda.memory_stats()
    return {
        "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
        "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
        "num_alloc_retries": stats["num_alloc_retries"],
    }


def _snapshot() -> bytes:
    """What pytorch.org/memory_viz reads. Written for a person to open; nothing here ever reads it."""
    return pickle.dumps(torch.cuda.memory._snapshot())
