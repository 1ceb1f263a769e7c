"""Expands a sweep file into cells. Pure: reads no file and touches no device (refusals: `orchestrator.preflight`).

A field that a mode does not read is left out of its cell, so that equal work has an equal `cell_id` everywhere:
two models that differ only in their draft share their plain cells.
"""

from itertools import product

from orchestrator.spec import ModelSpec, SweepSpec
from workers.allocator import DEFAULT
from workers.cell import Cell, Engine, ModelRef
from workers.kv_dtype import AUTO, DEVICE
from workers.modes import MODES, WORKLOADS, Layout, Retrieve, Speculation, Streaming, Workload


def build_cell(
    spec: SweepSpec,
    model: ModelSpec,
    mode_name: str,
    engine: Engine,
    *,
    prompt_tokens: int,
    length: int,
    batch_size: int = 1,
    budget: int | None = None,
    allocator: str = DEFAULT,
    kv_dtype: str = AUTO,
    kv_placement: str = DEVICE,
    devices: int = 1,
    repetition_penalty: float | None = None,
    task: str | None = None,
    repeat: int = 0,
) -> Cell:
    """One cell of the sweep, normalised. Callers vary it further with `dataclasses.replace`."""
    mode = MODES[mode_name]
    ref = model_ref(model, draft=mode.decoder.needs_draft)
    workload = WORKLOADS[spec.workload]
    has_prompt = workload.has_prompt
    keeps = mode.policy.layout is not Layout.NONE
    penalty = spec.repetition_penalty[0] if repetition_penalty is None else repetition_penalty
    return Cell(
        model=ref,
        mode=mode_name,
        engine=engine,
        workload=spec.workload,
        prompt_tokens=_prompt(workload, prompt_tokens, length),
        length=length,
        batch_size=batch_size,
        prefill_chunk=spec.prefill_chunk,
        streaming=Streaming(sinks=spec.streaming.sinks, window=spec.streaming.window)
        if mode.policy.parameters is Streaming
        else None,
        speculation=Speculation(gamma=spec.speculation.gamma, acceptance=spec.speculation.rates())
        if mode.decoder.parameters is Speculation
        else None,
        repetition_penalty=penalty if has_prompt else 1.0,
        corpus=spec.corpus,
        budget=budget,
        allocator=allocator,
        retrieve=Retrieve(
            task=task or spec.retrieve.tasks[0], depths=spec.retrieve.depths, samples=spec.retrieve.samples
        )
        if workload.parameters is Retrieve
        else None,
        kv_dtype=kv_dtype if keeps else AUTO,
        kv_placement=kv_placement if keeps else DEVICE,
        devices=devices,
        repeat=repeat,
        seed=spec.seed,
    )


def _prompt(workload: Workload, prompt_tokens: int, length: int) -> int:
    if workload.prompt_is_length:
        return length
    return prompt_tokens if workload.has_prompt else 0


def expand(spec: SweepSpec) -> list[Cell]:
    """Every measured cell once. Repeats are the outermost axis, so that modes interleave across them."""
    cells: dict[Cell, None] = {}
    axes = product(
        range(spec.first_repeats),
        spec.budgets,
        list(product(spec.devices_per_cell, spec.allocator, spec.kv_placement, spec.kv_dtype)),
        list(product(spec.models, _tasks(spec))),
        spec.repetition_penalty,
        spec.prompt_tokens,
        spec.batch_sizes,
        spec.lengths,
        spec.engines,
        spec.modes,
    )
    for repeat, budget, memory, asked, penalty, prompt_tokens, batch_size, length, engine, mode in axes:
        model, task = asked
        if MODES[mode].decoder.needs_draft and model.draft is None:
            continue
        cell = build_cell(
            spec,
            model,
            mode,
            engine,
            prompt_tokens=prompt_tokens,
            length=length,
            batch_size=batch_size,
            budget=budget,
            devices=memory[0],
            allocator=memory[1],
            kv_placement=memory[2],
            kv_dtype=memory[3],
            repetition_penalty=penalty,
            task=task,
            repeat=repeat,
        )
        cells[cell] = None
    return list(cells)


def _tasks(spec: SweepSpec) -> list[str | None]:
    return [*spec.retrieve.tasks] if WORKLOADS[spec.workload].parameters is Retrieve else [None]


def model_ref(model: ModelSpec, *, draft: bool = True) -> ModelRef:
    """The model as a cell names it, without its draft where `draft` is false."""
    values = {name: getattr(model, name) for name in ModelRef.__dataclass_fields__}
    return ModelRef(**values if draft else values | {"draft": None})
