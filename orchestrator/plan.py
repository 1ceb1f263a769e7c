"""From what was asked to what is run: a sweep file becomes cells. Pure; no device is touched.

A field that a mode does not read is left out of its cell, so that equal work has an equal `cell_id` everywhere:
two models that differ only in their draft share their plain cells.
"""

import dataclasses
from itertools import product
from pathlib import Path

from orchestrator.spec import ModelSpec, SpecError, SweepSpec
from workers.cell import Cell, Engine, ModelRef, Speculation, Streaming
from workers.models import LoadError
from workers.models.config import check_draft, read_config
from workers.modes import MODES, CachePolicy


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
    repetition_penalty: float | None = None,
    repeat: int = 0,
) -> Cell:
    """One cell of the sweep, normalised. Callers vary it further with `dataclasses.replace`."""
    mode = MODES[mode_name]
    scoring = spec.workload == "score"
    penalty = spec.repetition_penalty[0] if repetition_penalty is None else repetition_penalty
    return Cell(
        model=dataclasses.replace(model_ref(model), draft=model.draft if mode.speculative else None),
        mode=mode_name,
        engine=engine,
        workload=spec.workload,
        prompt_tokens=0 if scoring else prompt_tokens,
        length=length,
        batch_size=batch_size,
        prefill_chunk=spec.prefill_chunk,
        streaming=None
        if mode.policy is CachePolicy.FULL
        else Streaming(sinks=spec.streaming.sinks, window=spec.streaming.window),
        speculation=Speculation(gamma=spec.speculation.gamma, acceptance=spec.speculation.rates())
        if mode.speculative
        else None,
        repetition_penalty=1.0 if scoring else penalty,
        corpus=spec.corpus,
        budget=budget,
        repeat=repeat,
        seed=spec.seed,
    )


def expand(spec: SweepSpec) -> list[Cell]:
    """Every measured cell once. Repeats are the outermost axis, so that modes interleave across them."""
    cells: dict[str, Cell] = {}
    axes = product(
        range(spec.repeats),
        spec.budgets,
        spec.models,
        spec.repetition_penalty,
        spec.prompt_tokens,
        spec.batch_sizes,
        spec.lengths,
        spec.engines,
        spec.modes,
    )
    for repeat, budget, model, penalty, prompt_tokens, batch_size, length, engine, mode in axes:
        if MODES[mode].speculative and model.draft is None:
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
            repetition_penalty=penalty,
            repeat=repeat,
        )
        cells.setdefault(cell.cell_id, cell)
    return list(cells.values())


def refuse_bad_models(spec: SweepSpec) -> None:
    """What can be known wrong without loading a weight. Raises `SpecError`.

    A hub that cannot be reached is no reason to refuse: the workers may reach it. It becomes a `load_error` cell.
    """
    for index, model in enumerate(spec.models):
        ref = model_ref(model)
        configs = []
        for key, name in (("target", model.target), ("draft", model.draft)):
            if name is None:
                continue
            if _names_a_path(name) and not Path(name.removeprefix("random:")).expanduser().exists():
                raise SpecError(
                    f"models.{index}.{key}: {name!r} does not exist; give a hub id, a local folder, a .gguf file, "
                    "pocket, or random:NAME"
                )
            try:
                configs.append(read_config(name, ref))
            except LoadError as error:
                if name.startswith("random:"):
                    raise SpecError(f"models.{index}.{key}: {error}") from None
        if len(configs) == 2:
            try:
                check_draft(*configs)
            except LoadError as error:
                raise SpecError(
                    f"models.{index}.draft: {model.draft!r} with {model.target!r}: {error}"
                ) from None


def refuse_missing_corpus(spec: SweepSpec) -> None:
    path = Path(spec.corpus).expanduser()
    if path.suffix in (".txt", ".jsonl", ".parquet") and "://" not in spec.corpus and not path.is_file():
        raise SpecError(
            f"corpus: {spec.corpus!r} does not exist; give a .txt, .jsonl or .parquet file, a datasets name, or builtin"
        )


def model_ref(model: ModelSpec) -> ModelRef:
    return ModelRef(**{field.name: getattr(model, field.name) for field in dataclasses.fields(ModelRef)})


def _names_a_path(name: str) -> bool:
    bare = name.removeprefix("random:")
    return bare.startswith(("/", "./", "../", "~")) or bare.endswith(".gguf")
