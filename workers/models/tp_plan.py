"""A model in shards as transformers cuts it: the eager engine on several devices.

transformers has a plan for each family that it can cut: a style for each matrix. It makes DTensors of the matrices, one mesh
for all processes, and wraps the modules. Every process has joined the default group of `torch.distributed`.
"""

import os
from typing import TYPE_CHECKING, Any

import torch

from workers.models import LoadError
from workers.models.shard import Kept, draw_kept

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Matrices whose outputs are keys, and those whose outputs are queries, by the names that transformers gives them.
_KEYS = ("k_proj", "qkv_proj", "query_key_value")
_QUERIES = ("q_proj", "q_b_proj", *_KEYS[1:])
_BY_OUTPUTS = "colwise"


def plan_of(config: "PreTrainedConfig") -> dict[str, str]:
    """The style of each matrix by its path in a layer's module, `*` for its number; empty where transformers has no plan."""
    text = config.get_text_config(decoder=True)
    return dict(getattr(text, "base_model_tp_plan", None) or {})


def refused(config: "PreTrainedConfig", count: int) -> str | None:
    """Why transformers cannot cut a model with this configuration for `count` processes, in one line; None where it can."""
    plan, text = plan_of(config), config.get_text_config(decoder=True)
    if not plan:
        return f"transformers has no plan for {text.model_type} on several devices"
    query = text.num_attention_heads
    key = getattr(text, "num_key_value_heads", None) or query
    if _is_cut(plan, _QUERIES) and query % count:
        return f"{query} heads do not divide by {count} devices"
    if _is_cut(plan, _KEYS) and key % count:
        return f"{key} key heads do not divide by {count} devices, and transformers' plan divides them"
    return None


def kept_heads(config: "PreTrainedConfig", count: int) -> int:
    """Heads whose keys and values one of `count` devices keeps: what the plan gathers, or never cuts, is on each whole."""
    text = config.get_text_config(decoder=True)
    key: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return key // count if _is_cut(plan_of(config), _KEYS) else key


def _is_cut(plan: dict[str, str], names: tuple[str, ...]) -> bool:
    return any(style == _BY_OUTPUTS and path.rpartition(".")[2] in names for path, style in plan.items())


def load_options(count: int) -> dict[str, Any]:
    """For `from_pretrained`: each process reads its shard, and puts it onto its first device."""
    from transformers.distributed import DistributedConfig

    os.environ.setdefault("LOCAL_RANK", "0")
    return {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=count)}


def draw_by_plan(model: "PreTrainedModel", count: int, device: torch.device) -> None:
    """As `shard.draw`, cut by transformers' plan. Raises `LoadError`."""
    if (reason := refused(model.config, count)) is not None:
        raise LoadError(f"{type(model).__name__}: {reason}")
    options, _, mesh = type(model).prepare_distribute_model(load_options(count)["distributed_config"])
    type(model).maybe_distribute_model(model, options, mesh)
    kept_of = {module: _kept(module) for module in model.modules()}
    draw_kept(model, {module: kept for module, kept in kept_of.items() if kept is not None}, device)


def _kept(module: torch.nn.Module) -> Kept | None:
    """How the module's shard is made from what is drawn whole: its DTensors say so, whose place whole tensors take here."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    placed = {
        name: (parameter.device_mesh, parameter.placements)
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    }
    for name in placed:
        cut = module._parameters[name]
        assert cut is not None
        module._parameters[name] = torch.nn.Parameter(torch.empty(cut.shape, dtype=cut.dtype, device="meta"))

    def kept(name: str, whole: torch.Tensor) -> torch.Tensor:
        if name not in placed:
            return whole
        mesh, placements = placed[name]
        local = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
        return DTensor.from_local(
            local.clone(),  # no view: the whole is let go
            mesh,
            placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    return kept if placed else None
