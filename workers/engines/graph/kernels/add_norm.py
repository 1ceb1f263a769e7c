"""The residual stream moves on: add up the splits, the biases and the residual; take the next norms."""

import torch
from torch.nn import functional

from workers.engines.graph.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Norm
from workers.engines.shared.rope import working


def add_norm_plain(
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


@jit(do_not_specialize=["rows"])
def _add_norm(
    x, partial, b0, b1, moved, weight0, nbias0, eps0, out0, weight1, nbias1, eps1, out1, rows,
    E: tl.constexpr, SPLITS: tl.constexpr, BIASES: tl.constexpr, NORMS: tl.constexpr, RMS: tl.constexpr,
    NBIAS: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    inside = e < E
    # Weights and biases are written by no kernel.
    bias_E = tl.load(b0 + e, mask=inside & (BIASES >= 1), other=0.0).to(tl.float32)
    bias_E += tl.load(b1 + e, mask=inside & (BIASES == 2), other=0.0).to(tl.float32)
    weight0_E = tl.load(weight0 + e, mask=inside, other=0.0).to(tl.float32)
    nbias0_E = tl.load(nbias0 + e, mask=inside & NBIAS, other=0.0).to(tl.float32)
    weight1_E = tl.load(weight1 + e, mask=inside & (NORMS == 2), other=0.0).to(tl.float32)
    nbias1_E = tl.load(nbias1 + e, mask=inside & NBIAS & (NORMS == 2), other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    total = tl.load(x + row * E + e, mask=inside, other=0.0).to(tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + (split * rows + row) * E + e, mask=inside, other=0.0)
    rounded = (total + bias_E).to(moved.dtype.element_ty)
    tl.store(moved + row * E + e, rounded, mask=inside)
    centred = rounded.to(tl.float32)
    if not RMS:
        centred = tl.where(inside, centred - tl.sum(centred, axis=0) / E, 0.0)
    spread = tl.sum(centred * centred, axis=0) / E
    y_E = _scaled(centred, spread + eps0, weight0_E, nbias0_E, out0.dtype.element_ty, RMS)
    tl.store(out0 + row * E + e, y_E, mask=inside)
    if NORMS == 2:
        y_E = _scaled(centred, spread + eps1, weight1_E, nbias1_E, out1.dtype.element_ty, RMS)
        tl.store(out1 + row * E + e, y_E, mask=inside)


@jit
def _scaled(centred, square, weight_E, bias_E, DTYPE: tl.constexpr, RMS: tl.constexpr):
    y = centred / tl.sqrt(square)
    if RMS:
        return (weight_E * y.to(DTYPE).to(tl.float32)).to(DTYPE)
    return (y * weight_E + bias_E).to(DTYPE)


def add_norm(
    x_NE: torch.Tensor,
    partial_SNE: torch.Tensor,
    biases: tuple[torch.Tensor, ...],
    norms: tuple[Norm, ...],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`add_norm_plain`, one program per row."""
    N, E = x_NE.shape
    moved_NE = torch.empty_like(x_NE)
    outs = tuple(torch.empty_like(x_NE) for _ in norms)
    norm_args: list[torch.Tensor | float] = []
    for norm, out in ((norms[0], outs[0]), (norms[-1], outs[-1])):
        norm_args += [norm.weight_E, out if norm.bias_E is None else norm.bias_E, norm.eps, out]
    b0, b1 = (biases[0], biases[-1]) if biases else (moved_NE, moved_NE)
    _add_norm[(N,)](
        x_NE, partial_SNE, b0, b1, moved_NE, *norm_args, N,
        E, partial_SNE.shape[0], len(biases), len(norms), norms[0].rms, norms[0].bias_E is not None,
        power_of_two(E), num_warps=8, **launch_options(),
    )  # fmt: skip
    return moved_NE, outs
