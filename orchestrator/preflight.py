"""Refuses a sweep whose input is known to be wrong before any device is touched. Reads configs, loads no weight."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from orchestrator.forecast import profile_for
from orchestrator.plan import expand, model_ref
from orchestrator.predict.memory import UnknownWeightsError, smallest_budget
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.spec import ModelSpec, SweepSpec
from orchestrator.spec_error import SpecError
from workers.cell import Cell
from workers.models import LoadError
from workers.models.config import check_draft, one_line, read_config
from workers.text import CorpusError
from workers.text.files import SUFFIXES, look_through
from workers.units import round_size_text, size_text

#: Texts of a corpus that are looked at before the sweep begins: a second's worth.
_ROWS = 10_000


def refuse_bad_input(spec: SweepSpec) -> None:
    """Refuse all that can be known wrong before any device is touched. Raises `SpecError`."""
    found: list[str] = []
    for check in (refuse_bad_models, refuse_missing_corpus, refuse_budgets_below_weights):
        try:
            check(spec)
        except SpecError as error:
            found.append(str(error))
    if found:
        raise SpecError("\n".join(found))


def refuse_bad_models(spec: SweepSpec) -> None:
    """Refuse models that do not exist, cannot be read, or do not go with their draft. Raises `SpecError`.

    A hub that does not answer here is no reason to refuse: it may answer the workers. Nor is a folder whose config is
    damaged: the other models run. Their cells end in `unavailable` and `load_error`.
    """
    if faults := [fault for index, model in enumerate(spec.models) for fault in _model_faults(index, model)]:
        raise SpecError("\n".join(faults))


def _model_faults(index: int, model: ModelSpec) -> Iterator[str]:
    ref = model_ref(model)
    configs = []
    for key, name in (("target", model.target), ("draft", model.draft)):
        if name is None:
            continue
        if _names_a_path(name) and not Path(name.removeprefix("random:")).expanduser().exists():
            yield (
                f"models.{index}.{key}: {name!r} does not exist; give a hub id, a local folder, a .gguf file, pocket, "
                "or random:NAME"
            )
            continue
        try:
            configs.append(read_config(name, ref))
        except LoadError as error:
            if name.startswith("random:") and not _is_folder(name):
                yield f"models.{index}.{key}: {error}"
    if len(configs) == 2:
        try:
            check_draft(*configs)
        except LoadError as error:
            yield f"models.{index}.draft: {model.draft!r} with {model.target!r}: {error}"


def refuse_missing_corpus(spec: SweepSpec) -> None:
    """Refuse a corpus that names a file where there is none, one of another kind, or one without a text.

    Raises `SpecError`.
    """
    path = Path(spec.corpus).expanduser()
    is_text = path.suffix in SUFFIXES
    if (is_text and "://" not in spec.corpus and not path.is_file()) or (not is_text and path.is_file()):
        wrong = "is no text" if path.is_file() else "does not exist"
        raise SpecError(
            f"corpus: {spec.corpus!r} {wrong}; give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, "
            "a datasets name, or builtin"
        )
    skipped_rows(spec)


def skipped_rows(spec: SweepSpec) -> str:
    """Which rows of the corpus have no text, in words; empty where all have one. Looks at the first `_ROWS` texts.

    Raises `SpecError`.
    """
    path = Path(spec.corpus)
    if not path.is_file():
        return ""
    try:
        return str(look_through(path, _ROWS))
    except CorpusError as error:
        raise SpecError(f"corpus: {spec.corpus!r}: {error}") from None
    except Exception as error:  # each format's parser raises its own
        raise SpecError(f"corpus: {spec.corpus!r} cannot be read: {one_line(error)}") from None


def refuse_budgets_below_weights(spec: SweepSpec) -> None:
    """Refuse a sweep in which no cell has room for one token. Raises `SpecError` with the smallest budget that would do.

    Where some cell has, the others run and end in `oom_load`. Computed without what a device would add (context, driver
    reserve), so that nothing is refused that could run.
    """
    if None in spec.budgets:
        return  # the whole device: nobody knows it here, and shapes take seconds to read
    bare = dataclasses.replace(profile_for("cpu")[0], context_bytes=0)
    longest_first = sorted(expand(spec), key=lambda cell: -cell.prompt_tokens)
    cells = list(
        {(c.model, c.mode, c.engine, c.batch_size, c.budget, c.devices): c for c in longest_first}.values()
    )
    shapes = ModelShapes()
    too_small: list[tuple[int, Cell]] = []
    for cell in cells:
        target, draft = shapes.weighed(cell)
        if cell.budget is None or target is None:
            return
        try:
            needed = smallest_budget(cell, target, draft, bare)
        except UnknownWeightsError:
            return
        if needed <= cell.budget:
            return
        too_small.append((needed, cell))
    needed, cell = min(too_small, key=lambda found: found[0])
    raise SpecError(
        f"budgets: {round_size_text(max(c.budget or 0 for c in cells))} is below what {cell.model.target!r} needs for "
        f"one token in mode {cell.mode!r} (oom_load): at least {size_text(needed)}, plus the device's own context"
    )


def _is_folder(name: str) -> bool:
    return (Path(name.removeprefix("random:")).expanduser() / "config.json").is_file()


def _names_a_path(name: str) -> bool:
    bare = name.removeprefix("random:")
    return bare.startswith(("/", "./", "../", "~")) or bare.endswith(".gguf")
