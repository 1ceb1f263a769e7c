"""Counts the bytes of a model's weights that one step of decoding reads."""

import torch

from workers.cell import Cell
from workers.models.load import LoadedModel, weights_bytes_of


def step_weights_bytes(cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> int | None:
    """Return the bytes that a step reads: the target once and, in a round of speculation, the draft gamma times.

    None for a mixture of experts: which of its experts a step reads, its tokens decide.
    """
    once = read_bytes(target)
    if draft is None or cell.speculation is None:
        return once
    drafted = read_bytes(draft)
    return None if once is None or drafted is None else once + cell.speculation.gamma * drafted


def read_bytes(loaded: LoadedModel) -> int | None:
    """Return the bytes of all weights but a table of embeddings of its own, of which a token reads a row."""
    if any(_is_experts(name, module) for name, module in loaded.model.named_modules()):
        return None
    table = loaded.model.get_input_embeddings()
    head = loaded.model.get_output_embeddings()
    whole = weights_bytes_of(loaded.model)
    if not isinstance(table, torch.nn.Embedding) or head is None:
        return whole
    is_shared = getattr(head, "weight", None) is table.weight
    return whole if is_shared else whole - table.weight.nbytes


def _is_experts(name: str, module: torch.nn.Module) -> bool:
    """Whether a token meets some of its weights only, by the names that transformers gives such modules."""
    return name.rpartition(".")[2] == "experts" or "Experts" in type(module).__name__
