"""The tensors of a loaded transformers model under one description, for both families. Nothing is copied.

Shape suffixes in this room:
    B batch    M tokens read in one pass    N rows, B * M    T positions    L layers
    E hidden   I intermediate   H query heads   K key/value heads   G queries per key/value head   D head size
    F rotary frequencies   V vocabulary   C cached slots   S splits of a sum
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.engines.session import ModeUnsupported

LLAMA_FAMILY = ("llama", "mistral", "qwen2")
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
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


def describe(model: Any) -> Weights:
    """Raises `ModeUnsupported` naming what this engine lacks for the architecture."""
    config = model.config
    family = config.model_type
    if family != "gpt_neox" and family not in LLAMA_FAMILY:
        raise ModeUnsupported(f"the graph engine reads gpt_neox and {', '.join(LLAMA_FAMILY)}, not {family}")
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise ModeUnsupported(f"the graph engine lacks rope type {rope_type}: it has {', '.join(ROPE_TYPES)}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        family == "mistral" and config.sliding_window is not None
    ):
        raise ModeUnsupported(f"the graph engine lacks sliding-window layers, which this {family} has")
    if config.hidden_act not in ACTIVATIONS:
        raise ModeUnsupported(f"the graph engine lacks activation {config.hidden_act}")
    base = model.base_model
    neox = family == "gpt_neox"
    final_norm = base.final_layer_norm if neox else base.norm
    return Weights(
        embedding_VE=model.get_input_embeddings().weight,
        layers=tuple((_neox_layer if neox else _llama_layer)(layer) for layer in base.layers),
        final_norm=_norm(final_norm),
        head=_linear(model.get_output_embeddings()),
        inv_freq_F=base.rotary_emb.inv_freq.to(torch.float64),
        rope_scaling=float(base.rotary_emb.attention_scaling),
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads if neox else config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        activation=ACTIVATIONS[config.hidden_act],
        parallel=neox and config.use_parallel_residual,
    )


def _neox_layer(layer: Any) -> Layer:
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        mlp_norm=_norm(layer.post_attention_layernorm),
        qkv=(_linear(layer.attention.query_key_value),),
        out=_linear(layer.attention.dense),
        gate=None,
        up=_linear(layer.mlp.dense_h_to_4h),
        down=_linear(layer.mlp.dense_4h_to_h),
    )


def _llama_layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        mlp_norm=_norm(layer.post_attention_layernorm),
        qkv=(_linear(attention.q_proj), _linear(attention.k_proj), _linear(attention.v_proj)),
        out=_linear(attention.o_proj),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _linear(module: Any) -> Linear:
    return Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight.detach(), module.bias.detach(), module.eps, rms=False)
    return Norm(module.weight.detach(), None, module.variance_epsilon, rms=True)
