"""The residual stream moves on: add up the splits, the biases and the residual; take the next norms."""

import torch
from torch.nn import functional

from workers.engine.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engine.kernels.tiles import follow
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
    return functional.layer_norm(x, x.shape[-1:], norm.weight_E.to(x.dtype), bias_E, norm.eps).to(x_NE.dtype)


@jit
def _norm(x, out, weight, bias, row, e, E: tl.constexpr, eps, RMS: tl.constexpr, BIAS: tl.constexpr):
    inside = e < E
    weight_E = tl.load(weight + e, mask=inside, other=0.0).to(tl.float32)
    if RMS:
        scaled = x / tl.sqrt(tl.sum(x * x, axis=0) / E + eps)
        y = weight_E * scaled.to(out.dtype.element_ty).to(tl.float32)
    else:
        centred = tl.where(inside, x - tl.sum(x, axis=0) / E, 0.0)
        y = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / E + eps) * weight_E
        if BIAS:
            y += tl.load(bias + e, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * E + e, y.to(out.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["rows"])
def _finish(
    x, partial, b0, b1, moved, weight0, nbias0, eps0, out0, weight1, nbias1, eps1, out1, rows,
    E: tl.constexpr, SPLITS: tl.constexpr, BIASES: tl.constexpr, NORMS: tl.constexpr, RMS: tl.constexpr,
    NBIAS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    follow()
    row = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    inside = e < E
    total = tl.load(x + row * E + e, mask=inside, other=0.0).to(tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + (split * rows + row) * E + e, mask=inside, other=0.0)
    if BIASES >= 1:
        total += tl.load(b0 + e, mask=inside, other=0.0).to(tl.float32)
    if BIASES == 2:
        total += tl.load(b1 + e, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(moved.dtype.element_ty)
    tl.store(moved + row * E + e, rounded, mask=inside)
    rounded_f = rounded.to(tl.float32)
    _norm(rounded_f, out0, weight0, nbias0, row, e, E, eps0, RMS, NBIAS)
    if NORMS == 2:
        _norm(rounded_f, out1, weight1, nbias1, row, e, E, eps1, RMS, NBIAS)


def finish(
    x_NE: torch.Tensor,
    partial_SNE: torch.Tensor,
    biases: tuple[torch.Tensor, ...],
    norms: tuple[Norm, ...],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`finish_plain`, one program per row."""
    N, E = x_NE.shape
    moved_NE = torch.empty_like(x_NE)
    outs = tuple(torch.empty_like(x_NE) for _ in norms)
    norm_args: list[torch.Tensor | float] = []
    for norm, out in ((norms[0], outs[0]), (norms[-1], outs[-1])):
        norm_args += [norm.weight_E, out if norm.bias_E is None else norm.bias_E, norm.eps, out]
    b0, b1 = (biases[0], biases[-1]) if biases else (moved_NE, moved_NE)
    _finish[(N,)](
        x_NE, partial_SNE, b0, b1, moved_NE, *norm_args, N,
        E, partial_SNE.shape[0], len(biases), len(norms), norms[0].rms, norms[0].bias_E is not None,
        power_of_two(E), num_warps=8, **launch_options(),
    )  # fmt: skip
    return moved_NE, outs
