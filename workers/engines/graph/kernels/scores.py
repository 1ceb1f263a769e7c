"""From the products of queries and keys to the weights of a softmax: scale, cap, learned sinks. Plain torch and Triton."""

from collections.abc import Iterable

import torch

from workers.engines.graph.kernels.jit import jit, tl
from workers.engines.graph.weights import Attention


def scored(products: torch.Tensor, how: Attention) -> torch.Tensor:
    """The scores of products q k^T."""
    scores = products * how.scale
    return scores if how.cap is None else how.cap * torch.tanh(scores / how.cap)


def learned_rows(how: Attention, kv_heads: int, tokens: int, like: torch.Tensor) -> torch.Tensor | None:
    """[K, M * G]: the learned score of each row of `attend_blocks.grouped`, None where there is none."""
    if how.sinks_H is None:
        return None
    sinks_KG = how.sinks_H.to(like.dtype).view(kv_heads, 1, -1)
    return sinks_KG.expand(-1, tokens, -1).reshape(kv_heads, -1)


def weighted(scores_BKRC: torch.Tensor, learned_KR: torch.Tensor | None) -> torch.Tensor:
    """The softmax of scores, -inf where nothing is seen; a learned score takes its share and has no value."""
    if learned_KR is None:
        return scores_BKRC.softmax(-1)
    learned_BKR1 = learned_KR[None, :, :, None].expand(len(scores_BKRC), -1, -1, 1)
    return torch.cat([scores_BKRC, learned_BKR1], -1).softmax(-1)[..., :-1]


def attended(
    like_BKRD: torch.Tensor,
    tiles: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    how: Attention,
    tokens: int,
) -> torch.Tensor:
    """What rows read of tiles, [B, K, R, D] as `like`. `tiles`: products [B, K, R, C], values [B, K, C, D], what each row sees
    [R, C]. `tokens`: of the pass.

    Tiles are merged by their log-sum-exp (FlashAttention, arXiv:2205.14135): memory is bounded by one tile.
    """
    peak_BKR = torch.full(like_BKRD.shape[:3], -torch.inf, dtype=like_BKRD.dtype, device=like_BKRD.device)
    total_BKR, sum_BKRD = torch.zeros_like(peak_BKR), torch.zeros_like(like_BKRD)
    for products_BKRC, v_BKCD, seen_RC in tiles:
        scores_BKRC = scored(products_BKRC, how).masked_fill(~seen_RC, -torch.inf)
        new_peak_BKR = torch.maximum(peak_BKR, scores_BKRC.amax(-1))
        level_BKR = new_peak_BKR.masked_fill(
            new_peak_BKR == -torch.inf, 0
        )  # of a row that has seen nothing yet
        weights_BKRC = (scores_BKRC - level_BKR[..., None]).exp()
        fade_BKR = (peak_BKR - level_BKR).exp()
        total_BKR = total_BKR * fade_BKR + weights_BKRC.sum(-1)
        sum_BKRD = sum_BKRD * fade_BKR[..., None] + weights_BKRC @ v_BKCD.to(like_BKRD.dtype)
        peak_BKR = new_peak_BKR
    learned_KR = learned_rows(how, like_BKRD.shape[1], tokens, peak_BKR)
    if learned_KR is not None:
        total_BKR = total_BKR + (learned_KR - peak_BKR).exp()
    return sum_BKRD / total_BKR[..., None]


def kernel_arguments(how: Attention, absent: torch.Tensor) -> tuple[tuple[object, ...], tuple[bool, bool]]:
    """(scale, cap, learned scores), (whether capped, whether learned). `absent`: any tensor, where a kernel reads none."""
    learned = absent if how.sinks_H is None else how.sinks_H
    return (how.scale, 1.0 if how.cap is None else how.cap, learned), (
        how.cap is not None,
        how.sinks_H is not None,
    )


@jit
def scored_tile(products, scale, cap, CAPPED: tl.constexpr):
    scores = products * scale
    if CAPPED:
        scores = cap * (2.0 * tl.sigmoid(2.0 * scores / cap) - 1.0)
    return scores


@jit
def add_learned(learned, peak, total):
    """What a learned score adds to a softmax of peak and total: (factor of the sum of values, new total)."""
    learned = learned.to(tl.float32)
    new_peak = tl.maximum(peak, learned)
    fade = tl.exp(peak - new_peak)
    return fade, total * fade + tl.exp(learned - new_peak)
