"""Attempts as the demo would bring them home: a pocket model on a CPU slot of 64 MiB, all four modes.

Baseline's cache grows until the data limit stops it near 3,000 tokens; streaming is flat. Deterministic.
"""

import hashlib
import math
import random
from dataclasses import replace

from orchestrator.plan import expand
from orchestrator.spec import ModelSpec, SpeculationSpec, StreamingSpec, SweepSpec
from workers.attempt import Attempt, Device, Failure, InEffect, Measured, Phase, Sample, Step
from workers.cell import Cell
from workers.modes import RetrievalAnswer, ScoreBucket
from workers.outcome import Outcome
from workers.retrieval.prompts import trials

MiB = 2**20
CPU = Device(kind="cpu", uuid="cpu-0-of-2", node="laptop", total_bytes=12 * 2**30)
WEIGHTS, DRAFT_WEIGHTS, TOKEN_BYTES, DRAFT_TOKEN_BYTES = 32 * MiB, 2 * MiB, 8_192, 1_536
CONTEXT = 512  # trained positions


def demo_spec(**changes: object) -> SweepSpec:
    spec = SweepSpec(
        name="demo",
        models=[ModelSpec(target="pocket", draft="pocket-draft", dtype="float32")],
        modes=["baseline", "baseline+spec", "streaming", "streaming+spec"],
        lengths=[500, 1000, 2000, 4000, 8000],
        prompt_tokens=[64],
        streaming=StreamingSpec(sinks=4, window=252),
        speculation=SpeculationSpec(gamma=4),
        budgets=[64 * MiB],
    )
    return spec.model_copy(update=changes)


def demo_attempts(spec: SweepSpec | None = None) -> list[Attempt]:
    """One attempt per cell of the sweep, in order."""
    cells = expand(spec or demo_spec())
    return [attempt_of(cell, number, started_at=1.79e9 + 20 * number) for number, cell in enumerate(cells)]


def attempt_of(cell: Cell, number: int, *, device: Device = CPU, started_at: float = 1.79e9) -> Attempt:
    """What a device of `device.kind` makes of `cell`."""
    if cell.workload == "score":
        return _scored(cell, number, device, started_at)
    if cell.workload == "retrieve":
        return _asked(cell, number, device, started_at)
    last, requested = _oom_index(cell)
    produced = cell.length if last is None else last
    rate = _rate(cell) * random.Random(cell.cell_id).uniform(0.985, 1.015)
    times = [0.35 + index / rate * (1 + index / 40_000) for index in range(0, produced + 1, 32)]
    steps = _steps(cell, times)
    samples = _samples(cell, steps)
    peak = max(sample.device_used_bytes or 0 for sample in samples)
    ids = _ids(cell, produced)
    attempt = replace(
        _done(cell, number, device, started_at),
        duration_s=times[-1] + 0.2,
        measured=_measured(cell, produced, rate, hashlib.sha256(str(ids).encode()).hexdigest()),
        peak_device_bytes=peak,
        peak_process_bytes=peak + 310 * MiB,
        sample_interval_p50_s=0.005,
        sample_interval_p99_s=0.0062,
        first_model_call_s=0.03,
        samples=samples,
        steps=steps,
        output_ids=ids,
    )
    return attempt if last is None else _out_of_memory(attempt, last, requested)


def _done(cell: Cell, number: int, device: Device, started_at: float) -> Attempt:
    return Attempt(
        lease_id=f"{cell.cell_id}.1.{number}",
        cell=cell,
        attempt=1,
        outcome=Outcome.OK,
        phase=Phase.DONE,
        device=device,
        started_at=started_at,
        duration_s=0.0,
    )


def _steps(cell: Cell, times: list[float]) -> tuple[Step, ...]:
    return tuple(
        Step(
            token_index=32 * k,
            t_s=t,
            allocated_bytes=None,
            reserved_bytes=None,
            kv_cache_bytes=_kv(cell, 32 * k),
        )
        for k, t in enumerate(times)
    )


def _samples(cell: Cell, steps: tuple[Step, ...]) -> tuple[Sample, ...]:
    running = ((step.t_s, _memory(cell, step.token_index)) for step in steps)
    return tuple(
        Sample(t_s=t, device_used_bytes=used, process_used_bytes=used + 310 * MiB)
        for t, used in [(0.05, 0), (0.2, WEIGHTS), *running]
    )


def _measured(cell: Cell, produced: int, rate: float, output_sha256: str) -> Measured:
    speculative = cell.mode_spec.decoder.verifies
    return Measured(
        new_tokens=produced,
        ttft_s=0.05,
        tokens_per_s=rate,
        tpot_p50_s=1 / rate,
        tpot_p95_s=1.2 / rate,
        tpot_p99_s=1.5 / rate,
        tokens_per_step=2.9 if speculative else 1.0,
        acceptance_rate=0.57 if speculative else None,
        draft_step_s=0.0011 if speculative else None,
        verify_step_s=0.0039 if speculative else None,
        load_s=0.15,
        load_was_warm=True,
        prepare_s=0.1,
        prefill_s=0.05,
        decode_s=produced / rate,
        weights_bytes=WEIGHTS,
        kv_cache_bytes=_kv(cell, produced),
        prompt_sha256="a" * 64,
        output_sha256=output_sha256,
        max_positions=CONTEXT,
        text_head="The import statement finds a module, loads it, and binds a name in the scope",
        text_tail=_tail(cell),
        in_effect=InEffect(cache_class="DynamicCache", attn_implementation="sdpa", dtype=cell.model.dtype),
    )


def _out_of_memory(attempt: Attempt, last: int, requested: int) -> Attempt:
    message = (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        f"allocate {requested} bytes. Error code 12 (Cannot allocate memory)"
    )
    failure = Failure(
        error_type="RuntimeError",
        error_message=message,
        oom_token_index=last,
        oom_requested_bytes=requested,
        last_output="",
    )
    told = replace(attempt.measured, tokens_per_s=None, output_sha256=None, text_head=None, text_tail=None)
    return replace(
        attempt,
        outcome=Outcome.OOM_DECODE,
        phase=Phase.DECODE,
        measured=told,
        failure=failure,
        output_ids=(),
    )


def _oom_index(cell: Cell) -> tuple[int | None, int]:
    """The token at which the data limit stops `cell` (None: never), and the bytes it asked for then."""
    if cell.budget is None or not cell.mode_spec.policy.grows:
        return None, 0
    for index in range(0, cell.length, 8):
        if _memory(cell, index) > cell.budget:
            return index, _kv(cell, index) // 12
    return None, 0


def _memory(cell: Cell, index: int) -> int:
    weights = WEIGHTS + (DRAFT_WEIGHTS if cell.mode_spec.decoder.verifies else 0)
    kv = _kv(cell, index)
    return weights + 4 * MiB + (kv + kv // 6 if cell.mode_spec.policy.grows else kv)


def _kv(cell: Cell, index: int) -> int:
    token = TOKEN_BYTES + (DRAFT_TOKEN_BYTES if cell.mode_spec.decoder.verifies else 0)
    if cell.streaming is not None:
        return token * (cell.streaming.sinks + cell.streaming.window + 8)
    return token * (cell.prompt_tokens + index)


def _rate(cell: Cell) -> float:
    base = 290.0 if cell.mode_spec.policy.grows else 330.0
    return base * (1.45 if cell.mode_spec.decoder.verifies else 1.0)


def _ids(cell: Cell, produced: int) -> tuple[int, ...]:
    """Streaming departs from the baseline once the first window is full."""
    departs = (cell.streaming.window + 30) if cell.streaming else None
    return tuple(
        (index * 7) % 1000 + (1000 if departs is not None and index >= departs else 0)
        for index in range(produced)
    )


def _tail(cell: Cell) -> str:
    if cell.streaming is None and cell.length > CONTEXT:
        return "the the the the | the `the` the <script>alert(1)</script> the the the"
    return "and the module's attributes are available through the dotted name, as described in the section"


def _scored(cell: Cell, number: int, device: Device, started_at: float) -> Attempt:
    edges = [(position, min(position + 256, cell.length)) for position in range(0, cell.length, 256)]
    scores = tuple(
        ScoreBucket(
            position_start=a, position_end=b, num_tokens=b - a, nll_sum=(b - a) * _nll(cell, (a + b) // 2)
        )
        for a, b in edges
    )
    return replace(
        _done(cell, number, device, started_at),
        duration_s=40.0,
        measured=Measured(
            new_tokens=cell.length,
            max_positions=CONTEXT,
            tokens_per_s=20.0 if cell.mode == "recompute" else 800.0,
            kv_cache_bytes=2 * MiB
            if cell.streaming
            else cell.length * TOKEN_BYTES // (1 if cell.kv_dtype == "auto" else 2),
            **_closeness(cell),
        ),
        results=scores,
    )


def _closeness(cell: Cell) -> dict[str, float]:
    if cell.mode in ("baseline", "recompute") and cell.kv_dtype == "auto":
        return {}
    kl = 0.001 if cell.streaming is None else 1.5
    return {"kl_tokens": 1024, "kl_mean": kl, "kl_p99": 10 * kl, "same_choice": 0.99 if kl < 1 else 0.2}


def _asked(cell: Cell, number: int, device: Device, started_at: float) -> Attempt:
    """Right where the needle is in sight, and one time in ten wrong beyond the trained context."""
    asked = cell.retrieve
    assert asked is not None
    answers = []
    for index, trial in enumerate(trials(asked.task, asked.depths, asked.samples, cell.seed)):
        at = None if trial.place is None else round(trial.place * (cell.length - 40))
        seen = cell.streaming is None or at is None or at >= cell.length - cell.streaming.window
        correct = seen and not (cell.length > CONTEXT and index % 10 == 0)
        expected = " ".join(trial.expected)
        answers.append(
            RetrievalAnswer(
                depth=trial.place,
                needle_at=at,
                answer=f" {expected}." if correct else " 00000 <script>alert(1)</script>",
                expected=expected,
                correct=correct,
                chat=False,
            )
        )
    return replace(
        _done(cell, number, device, started_at),
        duration_s=8.0,
        measured=Measured(new_tokens=cell.length, max_positions=CONTEXT),
        results=tuple(answers),
    )


def _nll(cell: Cell, position: int) -> float:
    wobble = 0.05 * math.sin(position / 300)
    if position <= 256:
        return 2.9 + wobble + 0.6 * math.exp(-position / 60)
    if cell.mode == "baseline" and position > CONTEXT:
        return 2.9 + wobble + 3.0 * (1 - math.exp(-(position - CONTEXT) / 900))
    return {"window": 3.9, "recompute": 2.93}.get(cell.mode, 2.95) + wobble
