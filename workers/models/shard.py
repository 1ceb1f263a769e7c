"""A model in shards: each of several processes holds some heads and some columns of every layer, and a part of the output
matrix (tensor parallelism as in Megatron-LM, arXiv:1909.08053). The cut of the graph engine; transformers' is in `tp_plan`.

Outputs of a matrix are its rows, inputs its columns. Norms, embeddings and biases of what is summed are not cut.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workers.cell import Engine
from workers.models import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Shard:
    """That of process `index` of `count`. `engine`: each cuts in its own way, the eager one as transformers does."""

    index: int
    count: int
    engine: Engine = "graph"


#: (name of a parameter, the whole) -> what a shard keeps of it
Kept = Callable[[str, torch.Tensor], torch.Tensor]
#: The parts of a tensor that one process keeps, from begin to end along one axis, in this order.
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of a model: `query` of them, `key` of those whose keys are kept, `size` numbers each."""

    query: int
    key: int
    size: int

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Heads":
        query: int = config.num_attention_heads
        key = getattr(config, "num_key_value_heads", None) or query
        size = getattr(config, "head_dim", None) or config.hidden_size // query
        return cls(query, key, size)

    def of_shard(self, shard: Shard) -> "Heads":
        return Heads(self.query // shard.count, max(1, self.key // shard.count), self.size)

    def queries(self, shard: Shard) -> Ranges:
        return _equal(self.query * self.size, shard)

    def keys(self, shard: Shard) -> Ranges:
        """Where there are fewer than processes, several hold the same one."""
        if self.key >= shard.count:
            return _equal(self.key * self.size, shard)
        head = shard.index * self.key // shard.count
        return [(head * self.size, (head + 1) * self.size)]


def uneven(config: "PreTrainedConfig", count: int) -> str | None:
    """Why a model with this configuration cannot be cut for `count` processes, in one line; None where it can."""
    if getattr(config, "kv_lora_rank", None) is not None:
        return "attention over latents is not cut: one device holds it whole"
    heads, inner = Heads.of(config), config.intermediate_size
    if heads.query % count:
        return f"{heads.query} heads do not divide by {count} devices"
    if heads.key % count and count % heads.key:
        return f"{heads.key} key heads neither divide by {count} devices nor share them equally"
    if inner % count:
        return f"an MLP of {inner} columns does not divide by {count} devices"
    if _has_experts(config):
        return "a mixture of experts is not cut: one device holds it whole"
    if config.model_type in _NORMS_OF_ALL_HEADS:
        return "its norms of queries and keys are taken over all heads together, which no device has"
    return None


_NORMS_OF_ALL_HEADS = ("olmo2", "olmo3")


def _has_experts(config: "PreTrainedConfig") -> bool:
    counts = (
        getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )
    return any(isinstance(count, int) and count > 1 for count in counts)


def shares_head(vocabulary: int, count: int) -> bool:
    """Whether the output matrix is cut. One whose rows do not divide by the processes stays whole on each."""
    return vocabulary % count == 0


def cut(model: "PreTrainedModel", shard: Shard) -> None:
    """Cut the tensors of a loaded model: views where they lie together, copies else. Raises `LoadError`."""
    heads = _checked(model, shard)
    for module, kept in _cut_modules(model, heads, shard):
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = kept(name, parameter.data)
    model.config = _config_of_shard(model.config, heads, shard)


def draw(model: "PreTrainedModel", shard: Shard, device: torch.device) -> None:
    """Give a model on the meta device the weights of its shard, as the architecture draws them. Raises `LoadError`."""
    heads = _checked(model, shard)
    draw_kept(model, dict(_cut_modules(model, heads, shard)), device)
    model.config = _config_of_shard(model.config, heads, shard)


def draw_kept(model: "PreTrainedModel", kept_of: dict[torch.nn.Module, Kept], device: torch.device) -> None:
    """Draw the weights of a model on the meta device, and keep what is wanted of them. `kept_of`: of the modules that are cut.

    Each module is drawn whole, then cut: shards of one seed are those of one model, into however many it is cut. It is not the
    one that is drawn where nothing is cut, whose constructors draw too.
    """

    def drawing(draw_whole: Callable[[torch.nn.Module], None]) -> Callable[[torch.nn.Module], None]:
        def draw_module(module: torch.nn.Module) -> None:
            module.to_empty(device=device, recurse=False)
            draw_whole(module)
            if (kept := kept_of.get(module)) is None:
                return
            for name, whole in list(module.named_parameters(recurse=False)):
                part = kept(name, data := whole.data)
                if part is not data:
                    module._parameters[name] = torch.nn.Parameter(
                        part.clone() if _shares(part, data) else part
                    )

        return draw_module

    inner = [module for module in model.modules() if hasattr(module, "_init_weights")]
    for each in inner:
        each._init_weights = drawing(each._init_weights)
    try:
        model.init_weights()
    finally:
        for each in inner:
            del each._init_weights


def _shares(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether it is a view, which would hold on to the whole."""
    return (
        type(part) is torch.Tensor and part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    )


def _checked(model: "PreTrainedModel", shard: Shard) -> Heads:
    if (reason := uneven(model.config, shard.count)) is not None:
        raise LoadError(f"{type(model).__name__}: {reason}")
    return Heads.of(model.config)


def _cut_modules(
    model: "PreTrainedModel", heads: Heads, shard: Shard
) -> Iterator[tuple[torch.nn.Module, Kept]]:
    inner: int = model.config.intermediate_size
    rows: dict[str, Ranges] = {
        "q_proj": heads.queries(shard),
        "k_proj": heads.keys(shard),
        "v_proj": heads.keys(shard),
        "query_key_value": _equal(3 * heads.query * heads.size, shard),  # q, k, v of a head side by side
        "qkv_proj": _packed((heads.query, heads.key, heads.key), heads, shard),
        **dict.fromkeys(("gate_proj", "up_proj", "dense_h_to_4h"), _equal(inner, shard)),
        "gate_up_proj": [*_equal(inner, shard), *_moved(_equal(inner, shard), inner)],
    }
    columns: dict[str, Ranges] = {
        **dict.fromkeys(("o_proj", "dense"), heads.queries(shard)),
        **dict.fromkeys(("down_proj", "dense_4h_to_h"), _equal(inner, shard)),
    }
    head = model.get_output_embeddings()
    found = set()
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if module is head:
            if not _is_tied(model) and shares_head(len(head.weight), shard.count):
                yield module, _rows(_equal(len(head.weight), shard))
        elif name in rows:
            yield module, _rows(rows[name])
            found.add(name)
        elif name in columns:
            yield module, _columns(columns[name], has_bias=shard.index == 0)
            found.add(name)
    if not found & set(rows) or not found & set(columns):
        raise LoadError(f"{type(model).__name__}: none of its matrices has a name that tells how it is cut")


def _is_tied(model: "PreTrainedModel") -> bool:
    """Tied, the table of embeddings is whole on each process, and the output matrix is a view of its rows."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _config_of_shard(config: "PreTrainedConfig", heads: Heads, shard: Shard) -> Any:
    local = copy.deepcopy(config)
    own = heads.of_shard(shard)
    local.head_dim = own.size  # which would else follow from the number of heads
    local.num_attention_heads = own.query
    if getattr(config, "num_key_value_heads", None) is not None:
        local.num_key_value_heads = own.key
    local.intermediate_size = config.intermediate_size // shard.count
    return local


def _equal(size: int, shard: Shard) -> Ranges:
    part = size // shard.count
    return [(shard.index * part, (shard.index + 1) * part)]


def _moved(ranges: Ranges, by: int) -> Ranges:
    return [(begin + by, end + by) for begin, end in ranges]


def _packed(counts: tuple[int, int, int], heads: Heads, shard: Shard) -> Ranges:
    """Of queries, keys and values in one matrix, each whole behind the other."""
    queries, keys, _ = (count * heads.size for count in counts)
    own = heads.keys(shard)
    return [*heads.queries(shard), *_moved(own, queries), *_moved(own, queries + keys)]


def _rows(ranges: Ranges) -> Kept:
    """Of a matrix its outputs, of a bias those numbers."""

    def kept(name: str, whole: torch.Tensor) -> torch.Tensor:
        parts = [whole[begin:end] for begin, end in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return kept


def _columns(ranges: Ranges, *, has_bias: bool) -> Kept:
    """Of a matrix its inputs. Its bias is added once: the others hold zeros."""
    ((begin, end),) = ranges

    def kept(name: str, whole: torch.Tensor) -> torch.Tensor:
        if whole.ndim == 1:
            return whole if has_bias else torch.zeros_like(whole)
        return whole[:, begin:end].contiguous()

    return kept
