"""Checks that a run is what the cell asks for: its positions, the settings in effect, its length."""

import torch

from workers.attempt import Failure, InEffect
from workers.cell import AUTO, Cell
from workers.models import LoadError
from workers.models.load import LoadedModel
from workers.models.source import RANDOM
from workers.outcome import Outcome


class ContextLimit(Exception):
    """The run needs positions that the model never learned. One line: learned, needed."""


def check_in_effect(cell: Cell, found: InEffect) -> None:
    """Raise `LoadError` that names every setting in which the live objects differ from the cell."""
    policy = cell.mode_spec.policy
    context = policy.context(cell.streaming)
    asked: dict[str, object] = {
        "dtype": cell.model.dtype,
        "repetition_penalty": cell.repetition_penalty,
        "sinks": context.sinks if context is not None else None,
        "window": context.window if context is not None else None,
        "gamma": cell.speculation.gamma if cell.speculation is not None else None,
    }
    if cell.engine == "eager" and not policy.own_attention and cell.model.attn_implementation != AUTO:
        asked["attn_implementation"] = cell.model.attn_implementation
    wrong = [
        f"{name} is {getattr(found, name)}, {value} was asked for"
        for name, value in asked.items()
        if getattr(found, name) != value
    ]
    if wrong:
        raise LoadError("in effect: " + "; ".join(wrong))


def check_positions(cell: Cell, target: LoadedModel) -> None:
    """Raise `ContextLimit` where a model of learned absolute positions would run beyond its table. On a GPU that
    would poison the context.

    RoPE runs beyond its trained context; `max_positions` on record marks it.
    """
    learned = target.max_positions
    needed = cell.workload_spec.positions(cell)
    if not cell.mode_spec.policy.absolute_positions or learned is None or needed <= learned:
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


def into_vocabulary(target: LoadedModel, ids_T: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The ids, and how many of them were mapped into the vocabulary of a random model: its tokenizer is another model's, and
    its text means nothing anyway. Ids of a model with a tokenizer of its own stay what they are.
    """
    beyond_T = ids_T >= target.vocab_size
    if not target.name.startswith(RANDOM) or not beyond_T.any():
        return ids_T, 0
    return ids_T % target.vocab_size, int(beyond_T.sum())


def check_ids(cell: Cell, target: LoadedModel, ids_T: torch.Tensor) -> None:
    """Raise `LoadError` that names the ids for which the model has no embedding. On a GPU they would poison the context."""
    rows = target.model.get_input_embeddings().weight.shape[0]
    beyond = ids_T[ids_T >= rows].unique().tolist()
    if beyond:
        told = ", ".join(map(str, beyond[:5])) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
        raise LoadError(
            f"{target.name}: its tokenizer gives ids {told} of corpus {cell.corpus}, its embedding has {rows} rows: "
            "they do not belong together"
        )


def check_length(produced: int, length: int) -> tuple[Outcome, Failure | None]:
    """A run that stopped early, or went on, is neither a fast nor a slow run."""
    if produced == length:
        return Outcome.OK, None
    return Outcome.LENGTH_SHORT, Failure(
        error_type="LengthShort", error_message=f"{produced} tokens, {length} were asked for"
    )
