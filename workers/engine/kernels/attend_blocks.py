"""Attention of M new tokens over the full cache: write their keys, then read what is filled, block by block."""

import torch
import torch.nn.functional as F_

from workers.engine.full_cache import BLOCK, FullCache
from workers.engine.kernels.jit import ceil_div
from workers.engine.rope import Angles, rotate, working


def attend_blocks_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer.

    Blocks are merged by their log-sum-exp (FlashAttention, arXiv:2205.14135): memory is bounded by one block.
    """
    B, M, H, D = q_BMHD.shape
    K = k_BMKD.shape[2]
    first = int(start)
    q_BMHD = rotate(q_BMHD, angles.cos_MF, angles.sin_MF)
    k_BMKD = rotate(k_BMKD, angles.cos_MF, angles.sin_MF)
    _write(cache, layer, first, k_BMKD, v_BMKD)
    if first == 0:
        q, k, v = (x.transpose(1, 2) for x in (q_BMHD, k_BMKD, v_BMKD))
        out_BHMD = F_.scaled_dot_product_attention(q, k, v, is_causal=M > 1, enable_gqa=H != K)
        return out_BHMD.transpose(1, 2).reshape(B, M, H * D)
    q_BKRD = grouped(q_BMHD, K)
    position_R = (first + torch.arange(M, device=start.device)).repeat_interleave(H // K)
    peak_BKR = torch.full(q_BKRD.shape[:3], -torch.inf, dtype=q_BKRD.dtype, device=q_BKRD.device)
    total_BKR = torch.zeros_like(peak_BKR)
    sum_BKRD = torch.zeros_like(q_BKRD)
    for index, block in enumerate(cache.blocks[: ceil_div(first + M, BLOCK)]):
        k_BKCD, v_BKCD = block[layer, 0].to(q_BKRD.dtype), block[layer, 1].to(q_BKRD.dtype)
        position_C = index * BLOCK + torch.arange(BLOCK, device=start.device)
        hidden_RC = position_C[None, :] > position_R[:, None]
        scores_BKRC = (q_BKRD @ k_BKCD.transpose(2, 3) * D**-0.5).masked_fill(hidden_RC, -torch.inf)
        new_peak_BKR = torch.maximum(peak_BKR, scores_BKRC.amax(-1))  # finite: everyone sees position 0
        weights_BKRC = (scores_BKRC - new_peak_BKR[..., None]).exp()
        fade_BKR = (peak_BKR - new_peak_BKR).exp()
        total_BKR = total_BKR * fade_BKR + weights_BKRC.sum(-1)
        sum_BKRD = sum_BKRD * fade_BKR[..., None] + weights_BKRC @ v_BKCD
        peak_BKR = new_peak_BKR
    return ungrouped(sum_BKRD / total_BKR[..., None], M).to(q_BMHD.dtype)


def _write(cache: FullCache, layer: int, first: int, k_BMKD: torch.Tensor, v_BMKD: torch.Tensor) -> None:
    done, tokens = 0, k_BMKD.shape[1]
    while done < tokens:
        index, offset = divmod(first + done, BLOCK)
        count = min(BLOCK - offset, tokens - done)
        for which, x_BMKD in enumerate((k_BMKD, v_BMKD)):
            cache.blocks[index][layer, which, :, :, offset : offset + count] = x_BMKD[
                :, done : done + count
            ].transpose(1, 2)
        done += count


def grouped(q_BMHD: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, K, M * G, D] in working precision: the G query heads that share a key/value head, side by side."""
    B, M, H, D = q_BMHD.shape
    q_BMKGD = q_BMHD.reshape(B, M, kv_heads, H // kv_heads, D).to(working(q_BMHD.dtype))
    return q_BMKGD.transpose(1, 2).reshape(B, kv_heads, -1, D)


def ungrouped(attended_BKRD: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `grouped`, heads joined: [B, M, H * D]."""
    B, K, R, D = attended_BKRD.shape
    return attended_BKRD.reshape(B, K, tokens, R // tokens, D).transpose(1, 2).reshape(B, tokens, -1)
