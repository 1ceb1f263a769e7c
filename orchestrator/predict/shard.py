"""What one of several devices holds of a model, as a shape of its own: the largest of them, where they differ.

The model is built without memory, and its tensors are counted as the engine cuts them. What is whole on each device counts on
each: norms, a table of embeddings, one key head, a latent.
"""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from orchestrator.predict.shape import ModelShape, ShapeError, shape_for
from workers.cell import Engine, ModelRef

#: transformers' styles of a matrix, by the axis that is cut: of outputs, of inputs, of rows of a table.
_BY_OUTPUTS = frozenset(("colwise", "colwise_gather_output", "colwise_rep", "packed_colwise"))
_BY_INPUTS = frozenset(("rowwise", "rowwise_split_input", "rowwise_rep", "packed_rowwise"))
_TABLES = {"embedding_rowwise": 0, "embedding_colwise": 1}


def shape_of_shard(name: str, ref: ModelRef, engine: Engine | None, devices: int) -> ModelShape:
    """The shape that one of `devices` devices holds. Raises `LoadError` for a model that the engine does not cut so, and
    `ShapeError`."""
    from workers.models.config import read_config

    whole = shape_for(name, ref)
    if devices == 1:
        return whole
    if whole.is_quantised:
        raise ShapeError("its weights are quantised, and such are not cut")
    config = copy.deepcopy(read_config(name, ref))
    return (_own_cut if engine == "graph" else _by_plan)(whole, config, devices)


def _own_cut(whole: ModelShape, config: Any, devices: int) -> ModelShape:
    from workers.models.shard import Heads, Shard, cut

    heads = Heads.of(config).of_shard(Shard(0, devices))
    model = _built(config)
    cut(model, Shard(0, devices))
    sizes = [tensor.shape for tensor in _tensors(model)]
    return _with(whole, sizes, heads.query, heads.key, whole.intermediate // devices)


def _by_plan(whole: ModelShape, config: Any, devices: int) -> ModelShape:
    from workers.models import LoadError
    from workers.models.tp_plan import kept_heads, refused

    if (reason := refused(config, devices)) is not None:
        raise LoadError(f"{type(config).__name__}: {reason}")
    if whole.attention != "mla" and whole.other_cache.bytes(1, "bfloat16"):
        raise ShapeError("the plan does not tell what one device keeps of its layers' states")
    model = _built(config)
    plan: dict[str, str] = dict(model.tp_plan)
    named = {id(tensor): (path, tensor) for path, tensor in _named(model)}
    sizes = [_size(path, tensor, plan, devices) for path, tensor in named.values()]
    key = whole.kv_heads if whole.attention == "mla" else kept_heads(config, devices)
    gathers = any(
        path.endswith(("gate_up_proj", "qkv_proj")) and "gather" in style for path, style in plan.items()
    )
    share = 1 if gathers else devices
    return _with(whole, sizes, whole.heads // share, key, -(-whole.intermediate // share))


def _with(whole: ModelShape, sizes: list[Any], heads: int, kv_heads: int, intermediate: int) -> ModelShape:
    numels: dict[int, int] = {}
    for size in sizes:
        numels[size.numel()] = numels.get(size.numel(), 0) + 1
    return dataclasses.replace(
        whole,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        weight_numels=tuple(sorted(numels.items())),
    )


def _built(config: Any) -> Any:
    import torch

    from workers.models.build import from_config

    with torch.device("meta"):
        return from_config(config, torch.bfloat16)


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    """Those that take the model's dtype."""
    import torch

    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype == torch.bfloat16:
            yield path, tensor


def _tensors(model: Any) -> list[Any]:
    return list({id(tensor): tensor for _, tensor in _named(model)}.values())


def _size(path: str, tensor: Any, plan: dict[str, str], devices: int) -> Any:
    """The shape of a device's shard; where a size does not divide, of the first device, whose is the largest."""
    import torch

    pattern = ".".join("*" if part.isdigit() else part for part in path.split("."))
    style = plan.get(pattern) or plan.get(pattern.rpartition(".")[0]) or ""
    size = list(tensor.shape)
    if not size:  # a scale
        axis: int | None = None
    elif style in _TABLES:
        axis = _TABLES[style]
    elif style in _BY_OUTPUTS:
        axis = max(0, len(size) - 2)
    elif style in _BY_INPUTS and len(size) > 1:
        axis = len(size) - 1
    else:
        axis = None
    if axis is not None:
        size[axis] = -(-size[axis] // devices)
    return torch.Size(size)
