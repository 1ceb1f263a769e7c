"""Counts the bytes of a model's weights that one step of decoding reads."""

from collections.abc import Iterator
from typing import Any

import torch

from workers.cell import Cell
from workers.models.cache_tensors import cache_tensors
from workers.models.load import LoadedModel, weights_bytes_of


def step_weights_bytes(cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> int | None:
    """Return the bytes that a step reads: the target once and, in a round of speculation, the draft gamma times.

    Of a mixture of experts those of the experts that a token chooses. None where a step reads several tokens of a mixture
    (a batch, a round): which experts they share, the tokens decide.
    """
    is_one_token = cell.batch_size * cell.rows == 1
    once = read_bytes(target, is_one_token=is_one_token)
    if draft is None or cell.speculation is None:
        return once
    drafted = read_bytes(draft, is_one_token=is_one_token)
    return None if once is None or drafted is None else once + cell.speculation.gamma * drafted


def read_bytes(loaded: LoadedModel, *, is_one_token: bool) -> int | None:
    """Return the bytes of all weights but a table of embeddings of its own, of which a token reads a row, and but the experts
    that a token does not choose. None where these are not known.
    """
    idle = 0
    for parent, experts in _mixtures(loaded.model):
        unread = _idle_bytes(loaded.model, parent, experts) if is_one_token else None
        if unread is None:
            return None
        idle += unread
    table = loaded.model.get_input_embeddings()
    head = loaded.model.get_output_embeddings()
    whole = weights_bytes_of(loaded.model) - idle
    if not isinstance(table, torch.nn.Embedding) or head is None:
        return whole
    is_shared = getattr(head, "weight", None) is table.weight
    return whole if is_shared else whole - sum(part.nbytes for part in cache_tensors(table.weight))


def _mixtures(parent: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, torch.nn.Module]]:
    """Yield modules of which a token meets some of the weights only, by the names that transformers gives them, each behind
    the module that it is a part of."""
    for name, module in parent.named_children():
        if name == "experts" or "Experts" in type(module).__name__:
            yield parent, module
        else:
            yield from _mixtures(module)


def _idle_bytes(model: Any, parent: torch.nn.Module, experts: Any) -> int | None:
    """Return the bytes of the experts that one token does not choose, where all are alike and each choice is one of them."""
    count = (
        len(experts) if isinstance(experts, torch.nn.ModuleList) else getattr(experts, "num_experts", None)
    )
    chosen = getattr(model.config.get_text_config(decoder=True), "num_experts_per_tok", None)
    own = list(experts.parameters())
    if not own or not isinstance(count, int) or not isinstance(chosen, int):
        return None
    if not isinstance(experts, torch.nn.ModuleList) and any(len(parameter) != count for parameter in own):
        return None
    ours = {id(parameter) for parameter in own}
    routers = [part for part in parent.parameters() if id(part) not in ours and part.ndim == 2]
    if all(len(router) != count for router in routers):  # some choices are no expert: such a token reads less
        return None
    return sum(parameter.nbytes for parameter in own) * (count - chosen) // count
