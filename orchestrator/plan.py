"""Expands a sweep file into cells. Pure: reads no file and touches no device (refusals: `orchestrator.preflight`).

A field that a mode does not read is left out of its cell, so that equal work has an equal `cell_id` everywhere:
two models that differ only in their draft share their plain cells.
"""

from itertools import product

from orchestrator.spec import ModelSpec, SweepSpec
from workers.allocator import DEFAULT
from workers.cell import Cell, Engine, ModelRef
from workers.modes import MODES, WORKLOADS, Speculation, Streaming


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
    repetition_penalty: float | None = None,
    repeat: int = 0,
) -> Cell:
    """One cell of the sweep, normalised. Callers vary it further with `dataclasses.replace`."""
    mode = MODES[mode_name]
    ref = model_ref(model, draft=mode.decoder.needs_draft)
    has_prompt = WORKLOADS[spec.workload].has_prompt
    penalty = spec.repetition_penalty[0] if repetition_penalty is None else repetition_penalty
    return Cell(
        model=ref,
        mode=mode_name,
        engine=engine,
        workload=spec.workload,
        prompt_tokens=prompt_tokens if has_prompt else 0,
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
        repeat=repeat,
        seed=spec.seed,
    )


def expand(spec: SweepSpec) -> list[Cell]:
    """Every measured cell once. Repeats are the outermost axis, so that modes interleave across them."""
    cells: dict[Cell, None] = {}
    axes = product(
        range(spec.repeats),
        spec.budgets,
        spec.allocator,
        spec.models,
        spec.repetition_penalty,
        spec.prompt_tokens,
        spec.batch_sizes,
        spec.lengths,
        spec.engines,
        spec.modes,
    )
    for repeat, budget, allocator, model, penalty, prompt_tokens, batch_size, length, engine, mode in axes:
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
            allocator=allocator,
            repetition_penalty=penalty,
            repeat=repeat,
        )
        cells[cell] = None
    return list(cells)


def model_ref(model: ModelSpec, *, draft: bool = True) -> ModelRef:
    """The model as a cell names it, without its draft where `draft` is false."""
    values = {name: getattr(model, name) for name in ModelRef.__dataclass_fields__}
    return ModelRef(**values if draft else values | {"draft": None})
