"""The norms of queries and keys before they are rotated: of each head, or of all heads together."""

import torch

from workers.engines.graph.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.norm import apply, norm_plain, statistics
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.weights import Norm


def norm_heads_plain(
    q_NO: torch.Tensor, k_NO: torch.Tensor, q_norm: Norm, k_norm: Norm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [N, H * D] and keys [N, K * D]; a norm is as long as a head, or as all heads."""
    return _norm_plain(q_NO, q_norm), _norm_plain(k_NO, k_norm)


def _norm_plain(x_NO: torch.Tensor, norm: Norm) -> torch.Tensor:
    heads_NHD = x_NO.view(len(x_NO), -1, len(norm.weight_E))
    return norm_plain(heads_NHD, norm).view(x_NO.shape)


@jit
def _norm_part(x, weight, out, part, eps, E: tl.constexpr, NORM: tl.constexpr, BLOCK_E: tl.constexpr):
    e = tl.arange(0, BLOCK_E)
    weight_E = tl.load(weight + e, mask=e < E, other=0.0)
    mean, square = statistics(x + part * E, E, NORM, BLOCK_E)
    x_E = tl.load(x + part * E + e, mask=e < E, other=0.0)
    y_E = apply(x_E, mean, 1.0 / tl.sqrt(square + eps), weight_E, weight_E, NORM)
    tl.store(out + part * E + e, y_E, mask=e < E)


@jit(do_not_specialize=["queries"])
def _norm_heads(
    q, k, q_weight, k_weight, q_out, k_out, queries, q_eps, k_eps,
    Q: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: what one norm covers of one row."""
    wait_for_previous(PDL)
    part = tl.program_id(0).to(tl.int64)
    if part < queries:
        _norm_part(q, q_weight, q_out, part, q_eps, Q, NORM, BLOCK_Q)
    else:
        _norm_part(k, k_weight, k_out, part - queries, k_eps, K, NORM, BLOCK_K)


def norm_heads(
    q_NO: torch.Tensor, k_NO: torch.Tensor, q_norm: Norm, k_norm: Norm
) -> tuple[torch.Tensor, torch.Tensor]:
    """`norm_heads_plain` in one launch, for norms without a bias."""
    q_size, k_size = len(q_norm.weight_E), len(k_norm.weight_E)
    q_out, k_out = torch.empty_like(q_NO), torch.empty_like(k_NO)
    queries = q_NO.numel() // q_size
    _norm_heads[(queries + k_NO.numel() // k_size,)](
        q_NO, k_NO, q_norm.weight_E, k_norm.weight_E, q_out, k_out, queries, q_norm.eps, k_norm.eps,
        q_size, k_size, q_norm.kind, power_of_two(q_size), power_of_two(k_size),
        num_warps=4 if q_size > 1024 else 1, **launch_options(),
    )  # fmt: skip
    return q_out, k_out
