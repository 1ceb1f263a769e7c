"""What one of several devices holds of a model, as a shape of its own.

Of the graph engine's cut (`workers.models.shard`): the model is built without memory and cut there, so that its tensors are
counted, not computed. What is whole on each device (embeddings, norms, one key head, a latent) counts on each.
"""

import copy
import dataclasses
import functools

from orchestrator.predict.shape import ModelShape, shape_for
from workers.cell import ModelRef


@functools.lru_cache(maxsize=64)
def shape_of_shard(name: str, ref: ModelRef, devices: int) -> ModelShape:
    """The shape that one of `devices` devices holds. Raises `LoadError` for a model that cannot be cut so, `ShapeError`."""
    whole = shape_for(name, ref)
    return whole if devices == 1 else _cut(whole, name, ref, devices)


def _cut(whole: ModelShape, name: str, ref: ModelRef, devices: int) -> ModelShape:
    import torch

    from workers.models.build import from_config
    from workers.models.config import read_config
    from workers.models.shard import Heads, Shard, cut

    config = copy.deepcopy(read_config(name, ref))
    with torch.device("meta"):
        model = from_config(config, torch.bfloat16)
    heads = Heads.of(config).of_shard(Shard(0, devices))
    cut(model, Shard(0, devices))
    numels: dict[int, int] = {}
    for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
        if tensor.dtype == torch.bfloat16:
            numels[tensor.numel()] = numels.get(tensor.numel(), 0) + 1
    return dataclasses.replace(
        whole,
        heads=heads.query,
        kv_heads=heads.key,
        intermediate=whole.intermediate // devices,
        weight_numels=tuple(sorted(numels.items())),
    )
