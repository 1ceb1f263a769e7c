"""The tensors of a loaded transformers model under one description, for all families. Nothing is copied.

Shape suffixes in this room:
    B batch    M tokens read in one pass    N rows, B * M    T positions    L layers
    E hidden   I intermediate   H query heads   K key/value heads   G queries per key/value head   D head size
    F rotary frequencies   V vocabulary   C cached slots   S splits of a sum
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.engines.session import ModeUnsupported

#: transformers' name -> ours; "tanh" is GELU's tanh form
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "silu": "silu",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True)
class Linear:
    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm, or RMSNorm where `rms`."""

    weight_E: torch.Tensor
    bias_E: torch.Tensor | None
    eps: float
    rms: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """`qkv`: one fused matrix, heads outermost (GPT-NeoX), or q, k, v. `gate`: present where the MLP is gated."""

    attention_norm: Norm
    mlp_norm: Norm
    qkv: tuple[Linear, ...]
    out: Linear
    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """`parallel`: attention and MLP read the same residual (GPT-NeoX). `rope_scaling` multiplies cos and sin."""

    embedding_VE: torch.Tensor
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear
    inv_freq_F: torch.Tensor  # float64
    rope_scaling: float
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    parallel: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_VE.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding_VE.device

    @property
    def vocab_size(self) -> int:
        return self.head.weight_OI.shape[0]


def weights_of(
    model: Any, layers: Iterable[Layer], final_norm: Norm, *, kv_heads: int, parallel: bool = False
) -> Weights:
    """What all families have in common, around the layers that one family's module describes.

    Raises `ModeUnsupported` for an activation that the kernels lack.
    """
    config, base = model.config, model.base_model
    if config.hidden_act not in ACTIVATIONS:
        raise ModeUnsupported(f"the graph engine lacks activation {config.hidden_act}")
    return Weights(
        embedding_VE=model.get_input_embeddings().weight,
        layers=tuple(layers),
        final_norm=final_norm,
        head=linear(model.get_output_embeddings()),
        inv_freq_F=base.rotary_emb.inv_freq.to(torch.float64),
        rope_scaling=float(base.rotary_emb.attention_scaling),
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        activation=ACTIVATIONS[config.hidden_act],
        parallel=parallel,
    )


def linear(module: Any) -> Linear:
    return Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight.detach(), module.bias.detach(), module.eps, rms=False)
    return Norm(module.weight.detach(), None, module.variance_epsilon, rms=True)
