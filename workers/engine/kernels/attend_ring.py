"""Attention of M new tokens over sinks and ring: write their keys, then score the window with the query at its
absolute position and the sinks with the query at min(t, S + R - 1)."""

import torch

from workers.engine.kernels.attend_blocks import grouped, ungrouped
from workers.engine.ring import RingCache
from workers.engine.rope import Angles, rotate, working


def attend_ring_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer."""
    ring, k_BKCD, v_BKCD = cache.ring, cache.k_LBKCD[layer], cache.v_LBKCD[layer]
    M, H, D = q_BMHD.shape[1:]
    position_M = start + torch.arange(M, device=start.device)
    slot_M = ring.slot(position_M)
    k_BKCD.index_copy_(2, slot_M, rotate(k_BMKD, angles.cos_MF, angles.sin_MF).transpose(1, 2))
    v_BKCD.index_copy_(2, slot_M, v_BMKD.transpose(1, 2))

    slot_C = torch.arange(k_BKCD.shape[2], device=start.device)
    held_C = ring.held(slot_C, start + M)
    age_MC = position_M[:, None] - held_C[None, :]
    is_sink_C = slot_C < ring.sinks
    visible_MC = (age_MC >= 0) & (is_sink_C | ((held_C >= ring.sinks) & (age_MC < ring.reach)))

    K = k_BKCD.shape[1]
    k = k_BKCD.to(working(q_BMHD.dtype)).transpose(2, 3)
    near = grouped(rotate(q_BMHD, angles.cos_MF, angles.sin_MF), K) @ k
    far = grouped(rotate(q_BMHD, angles.far_cos_MF, angles.far_sin_MF), K) @ k
    scores_BKRC = torch.where(is_sink_C, far, near) * D**-0.5
    visible_RC = visible_MC.repeat_interleave(H // K, dim=0)
    weights_BKRC = scores_BKRC.masked_fill(~visible_RC, -torch.inf).softmax(-1)
    attended_BKRD = weights_BKRC @ v_BKCD.to(weights_BKRC.dtype)
    return ungrouped(attended_BKRD, M).to(q_BMHD.dtype)
