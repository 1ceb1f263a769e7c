"""The tensors of a loaded transformers model under one description, for all families. Nothing is copied.

Shape suffixes in this room:
    B batch    M tokens read in one pass    N rows, B * M    T positions    L layers
    E hidden   I intermediate   H query heads   K key/value heads   G queries per key/value head   D head size
    F rotary frequencies   V vocabulary   C cached slots   S splits of a sum   X experts   P chosen pairs of token and expert
    Z latent
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from workers.engines.graph.peers import Peers
from workers.engines.session import ModeUnsupported
from workers.engines.shared.rope import working

#: transformers' name -> ours; "tanh" is GELU's tanh form
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "silu": "silu",
    "relu": "relu",
}

#: What a norm computes; see `Norm`.
NormKind = Literal["none", "layer", "rms", "rms_late"]


@dataclass(frozen=True, slots=True)
class Linear:
    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm, or RMSNorm: rounded before its weight as Llama's (`rms`), or after it as Gemma's (`rms_late`).

    `none`: what it is given passes as it is; `weight_E` is of the right length and not read.
    """

    weight_E: torch.Tensor
    bias_E: torch.Tensor | None
    eps: float
    kind: NormKind

    @property
    def shift_E(self) -> torch.Tensor:  # noqa: N802  (a shape, as of the fields)
        """The bias; where there is none, a tensor that a kernel may point at and does not add."""
        return self.weight_E if self.bias_E is None else self.bias_E


@dataclass(frozen=True, slots=True)
class Rotary:
    """`inv_freq_F`: float64; zeros where nothing is rotated (NoPE). `scaling` multiplies cos and sin."""

    inv_freq_F: torch.Tensor
    scaling: float = 1.0


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention over latents (MLA, DeepSeek-V2, arXiv:2405.04434), absorbed: what makes keys and values of a latent is
    multiplied to queries, and to what was read, so that all heads share one cached row of a token.

    A row is a latent, normed by `norm`, and `turned` numbers behind it, which alone are rotated. `keys_HZD`: from a query's
    first D numbers to the width of a latent. `values_HDZ`: from a sum of latents to a head. `query_up`: where queries are made
    by two matrices, the norm between them and the second.
    """

    norm: Norm
    turned: int
    keys_HZD: torch.Tensor
    values_HDZ: torch.Tensor
    query_up: tuple[Norm, Linear] | None = None

    @property
    def rank(self) -> int:
        """Z, numbers of a latent."""
        return self.keys_HZD.shape[1]

    @property
    def width(self) -> int:
        """Numbers of a cached row."""
        return self.rank + self.turned


@dataclass(frozen=True, slots=True)
class Attention:
    """How the queries of a layer attend.

    `scale` multiplies scores; `cap` c makes of a score s c * tanh(s / c). `sliding_window`: a query sees itself and as many
    tokens less one before it, whatever the cache policy. `rope`: index into the model's ropes; `interleaved`: it turns
    neighbours of a head, not halves. `q_norm`, `k_norm`: of
    each head, or of all heads together where they are as long. `sinks_H`: learned, one more score in each softmax.
    `latent`: keys and values are made of one latent.
    """

    scale: float
    sliding_window: int | None = None
    rope: int = 0
    interleaved: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    sinks_H: torch.Tensor | None = None
    cap: float | None = None
    latent: Latent | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """`gate`: present where the MLP is gated."""

    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Routing:
    """From the scores of a token's experts to the chosen ones and their shares.

    A share is the softmax of a score, over the chosen ones or over all (`over_all`); where `sigmoid`, that of the score, over
    the sum of the chosen ones' unless `over_all`. `scale` multiplies it. Best is who has the best score, sigmoid and `bias_X` (DeepSeek-V3) applied.
    `groups`: (number of groups of neighbours, how many of them may be chosen from, a group counts as the sum of so many of its
    best). `wide`: scores are made and kept in working precision.
    """

    over_all: bool = False
    sigmoid: bool = False
    bias_X: torch.Tensor | None = None
    groups: tuple[int, int, int] | None = None
    scale: float = 1.0
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: of X gated MLPs, the `top` best of each token add to it, each with its share.

    `router`: gives each expert a score, and `routing` says who is chosen, with what share.
    `gate_up_XOE` [X, 2 I, E] and `down_XEI` may have any strides. Rows of gate and of up take turns where `interleaved`; else
    all of up follow all of gate. `clamp`: (alpha, limit) of gpt-oss: gate at most `limit`, up within it, and
    gate * sigmoid(alpha * gate) * (up + 1). `shared`: an MLP beside them, which every token has.
    """

    router: Linear
    top: int
    gate_up_XOE: torch.Tensor
    down_XEI: torch.Tensor
    gate_up_bias_XO: torch.Tensor | None = None
    down_bias_XE: torch.Tensor | None = None
    routing: Routing = Routing()
    interleaved: bool = False
    clamp: tuple[float, float] | None = None
    shared: Mlp | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """`qkv`: one fused matrix, heads outermost (GPT-NeoX), or q, k, v. `attention_out`, `mlp_out`: norms of what is added to
    the residual stream, where there are any."""

    attention_norm: Norm
    mlp_norm: Norm
    qkv: tuple[Linear, ...]
    attention: Attention
    out: Linear
    mlp: Mlp | Experts
    attention_out: Norm | None = None
    mlp_out: Norm | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """`parallel`: attention and MLP read the same residual (GPT-NeoX). `embedding_scale` multiplies what is embedded,
    `added_scale` what each attention and MLP adds, `logit_scale` the logits.
    `rope_tables`: frequencies [ropes * F] and scalings of all ropes, in float64, for a kernel. `logit_cap` c makes of a logit z c * tanh(z / c).
    `peers`: the processes that hold the other shards of the model; None: all of it is here. `heads` and `kv_heads` are those here."""

    embedding_VE: torch.Tensor
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear
    ropes: tuple[Rotary, ...]
    rope_tables: tuple[torch.Tensor, torch.Tensor]
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    parallel: bool = False
    embedding_scale: float = 1.0
    added_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    peers: Peers | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_VE.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding_VE.device

    @property
    def vocab_size(self) -> int:
        return self.embedding_VE.shape[0]

    @property
    def shares_head(self) -> bool:
        """Whether the output matrix gives a part of the logits only."""
        return self.head.weight_OI.shape[0] < self.vocab_size

    @property
    def kept_dims(self) -> tuple[int, int]:
        """Numbers of a key and of a value of a head, as a cache keeps them. A latent is both: no value beside it."""
        latent = self.layers[0].attention.latent
        return (self.head_dim, self.head_dim) if latent is None else (latent.width, 0)


def weights_of(
    model: Any,
    layers: Iterable[Layer],
    final_norm: Norm,
    *,
    ropes: tuple[Rotary, ...] | None = None,
    activation: str | None = None,
    **own: Any,
) -> Weights:
    """What all families have in common, around the layers that one family's module describes.

    `own`: further fields of `Weights`. Raises `ModeUnsupported` for an activation that the kernels lack.
    """
    config = model.config
    turned = ropes or (rope(model.base_model.rotary_emb),)
    inv_freq_RF = torch.stack([each.inv_freq_F for each in turned])
    named = activation or config.hidden_act
    if named not in ACTIVATIONS:
        raise ModeUnsupported(f"the graph engine lacks activation {named}")
    heads = {
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "head_dim": head_dim(config),
    }
    return Weights(
        embedding_VE=model.get_input_embeddings().weight,
        layers=tuple(layers),
        final_norm=final_norm,
        head=linear(model.get_output_embeddings()),
        ropes=turned,
        rope_tables=(inv_freq_RF.flatten(), inv_freq_RF.new_tensor([each.scaling for each in turned])),
        activation=ACTIVATIONS[named],
        **{**heads, **own},
    )


def head_dim(config: Any) -> int:
    """Numbers of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope(module: Any, kind: str = "") -> Rotary:
    """A rotary embedding of transformers; `kind`: of one kind of layers, where they differ."""
    prefix = f"{kind}_" if kind else ""
    inv_freq_F = getattr(module, f"{prefix}inv_freq")
    return Rotary(inv_freq_F.to(torch.float64), float(getattr(module, f"{prefix}attention_scaling")))


def ropes_by_kind(module: Any) -> dict[str, Rotary]:
    """Those of each kind of layers; one for all is under the empty name."""
    if hasattr(module, "inv_freq"):
        return {"": rope(module)}
    return {kind: rope(module, kind) for kind in module.layer_types}


def unrotated(like: Rotary) -> Rotary:
    """For layers without positions (NoPE): cos 1 and sin 0, so that a head passes to the bit."""
    return Rotary(torch.zeros_like(like.inv_freq_F))


def linear(module: Any) -> Linear:
    """A matrix and its bias, of a module that may have none."""
    bias = getattr(module, "bias", None)
    return Linear(module.weight.detach(), None if bias is None else bias.detach())


def rows_of(module: Any, *counts: int) -> tuple[Linear, ...]:
    """A fused matrix cut into its parts, by their numbers of outputs. Views."""
    whole = linear(module)
    biases = [None] * len(counts) if whole.bias_O is None else whole.bias_O.split(counts)
    return tuple(
        Linear(part_OI, bias_O) for part_OI, bias_O in zip(whole.weight_OI.split(counts), biases, strict=True)
    )


def norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight.detach(), module.bias.detach(), module.eps, "layer")
    return Norm(module.weight.detach(), None, module.variance_epsilon, "rms")


def late_norm(module: Any, offset: float = 0.0) -> Norm:
    """An RMSNorm that is rounded after its weight, to which `offset` is added in working precision (Gemma: 1)."""
    weight_E = module.weight.detach()
    if offset:
        weight_E = weight_E.to(working(weight_E.dtype)) + offset
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(weight_E, None, eps, "rms_late")


def no_norm(like: Norm) -> Norm:
    """What passes as it is."""
    return Norm(like.weight_E, None, 1.0, "none")
