"""The residual stream moves on: add up the splits, the biases and the residual; take the next norms."""

import torch
import torch.nn.functional as F_

from workers.engine.rope import working
from workers.engine.weights import Norm


def finish_plain(
    x_NE: torch.Tensor,
    partial_SNE: torch.Tensor,
    biases: tuple[torch.Tensor, ...],
    norms: tuple[Norm, ...],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The new residual [N, E], rounded once, and each norm of it."""
    total = x_NE.to(partial_SNE.dtype) + partial_SNE.sum(0)
    for bias_E in biases:
        total = total + bias_E
    moved_NE = total.to(x_NE.dtype)
    return moved_NE, tuple(norm_plain(moved_NE, norm) for norm in norms)


def norm_plain(x_NE: torch.Tensor, norm: Norm) -> torch.Tensor:
    """LayerNorm, or RMSNorm, which rounds before its weight as transformers' does."""
    x = x_NE.to(working(x_NE.dtype))
    if norm.rms:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        return norm.weight_E * scaled.to(x_NE.dtype)
    bias_E = None if norm.bias_E is None else norm.bias_E.to(x.dtype)
    return F_.layer_norm(x, x.shape[-1:], norm.weight_E.to(x.dtype), bias_E, norm.eps).to(x_NE.dtype)
