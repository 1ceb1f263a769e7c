"""The norms of the residual stream: LayerNorm, or RMSNorm."""

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Norm
from workers.engines.shared.rope import working


def norm_plain(x_NE: torch.Tensor, norm: Norm) -> torch.Tensor:
    """LayerNorm, or RMSNorm, rounded where transformers rounds it (`weights.Norm`)."""
    if norm.kind == "none":
        return x_NE
    x = x_NE.to(working(x_NE.dtype))
    if norm.kind != "layer":
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        if norm.kind == "rms":
            return norm.weight_E * scaled.to(x_NE.dtype)
        return (norm.weight_E.to(x.dtype) * scaled).to(x_NE.dtype)
    bias_E = None if norm.bias_E is None else norm.bias_E.to(x.dtype)
    return functional.layer_norm(x, x.shape[-1:], norm.weight_E.to(x.dtype), bias_E, norm.eps).to(x_NE.dtype)


@jit
def statistics(x, E: tl.constexpr, NORM: tl.constexpr, BLOCK_E: tl.constexpr):
    """Of the row at `x`: its mean (of a LayerNorm; 0 else) and the mean square about it."""
    e = tl.arange(0, BLOCK_E)
    x_E = tl.load(x + e, mask=e < E, other=0.0).to(tl.float32)
    mean = tl.full((), 0.0, tl.float32)
    if NORM == "layer":
        mean = tl.sum(x_E, axis=0) / E
    centred_E = tl.where(e < E, x_E - mean, 0.0)
    return mean, tl.sum(centred_E * centred_E, axis=0) / E


@jit
def apply(x, mean, scale, weight, bias, NORM: tl.constexpr):
    """`x` of float32 or narrower, rounded where transformers rounds; `scale`: 1 / sqrt(mean square + eps)."""
    if NORM == "none":
        return x
    if NORM == "rms":
        scaled = (x.to(tl.float32) * scale).to(x.dtype)
        return (weight.to(tl.float32) * scaled.to(tl.float32)).to(x.dtype)
    if NORM == "rms_late":
        return (weight.to(tl.float32) * (x.to(tl.float32) * scale)).to(x.dtype)
    return ((x.to(tl.float32) - mean) * scale * weight.to(tl.float32) + bias.to(tl.float32)).to(x.dtype)


@jit
def _norm(
    x, weight, bias, out, eps,
    E: tl.constexpr, NORM: tl.constexpr, BIASED: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    weight_E = tl.load(weight + e, mask=e < E, other=0.0)
    bias_E = tl.load(bias + e, mask=(e < E) & BIASED, other=0.0)
    wait_for_previous(PDL)
    mean, square = statistics(x + row * E, E, NORM, BLOCK_E)
    x_E = tl.load(x + row * E + e, mask=e < E, other=0.0)
    tl.store(
        out + row * E + e, apply(x_E, mean, 1.0 / tl.sqrt(square + eps), weight_E, bias_E, NORM), mask=e < E
    )


def norm_rows(x_NE: torch.Tensor, norm: Norm) -> torch.Tensor:
    """`norm_plain`, one program per row."""
    if norm.kind == "none":
        return x_NE
    N, E = x_NE.shape
    out_NE = torch.empty_like(x_NE)
    _norm[(N,)](
        x_NE, norm.weight_E, norm.shift_E, out_NE, norm.eps, E, norm.kind, norm.bias_E is not None, power_of_two(E),
        num_warps=8, **launch_options(),
    )  # fmt: skip
    return out_NE
