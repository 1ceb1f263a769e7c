"""Attention of M new tokens over a packed cache (`packed_cache`): keep their keys, pack the block that has become old, read
packed blocks, newest tokens and sinks.

Plain torch, which is the specification; `attend_packed_tiles` is the same in Triton. Longer passes are read in pieces of 64
tokens: such a piece begins at most one block, and packs one at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from workers.engines.graph.kernels.attend_blocks import grouped, ungrouped
from workers.engines.graph.kernels.packing import pack, unpack
from workers.engines.graph.kernels.scores import attended
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.rope import Angles, rotate
from workers.engines.graph.weights import Attention
from workers.engines.sizes import BLOCK, RECENT_BLOCKS

Attend = Callable[..., torch.Tensor]


def in_pieces(attend: Attend) -> Attend:
    """`attend` for a pass of any length."""

    def whole(
        q_BMHD: torch.Tensor,
        k_BMKD: torch.Tensor,
        v_BMKD: torch.Tensor,
        cache: PackedCache,
        layer: int,
        start: torch.Tensor,
        angles: Angles,
        how: Attention,
    ) -> torch.Tensor:
        count = q_BMHD.shape[1]
        if count <= BLOCK:
            return attend(q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how)
        found = []
        for begin in range(0, count, BLOCK):
            piece = slice(begin, begin + BLOCK)
            q_k_v = (x_BMHD[:, piece].contiguous() for x_BMHD in (q_BMHD, k_BMKD, v_BMKD))
            turns = replace(
                angles,
                cos_MF=angles.cos_MF[piece],
                sin_MF=angles.sin_MF[piece],
                far_cos_MF=angles.far_cos_MF[piece],
                far_sin_MF=angles.far_sin_MF[piece],
            )
            found.append(attend(*q_k_v, cache, layer, start + begin, turns, how))
        return torch.cat(found, 1)

    return whole


def _attend_packed_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: PackedCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    M, H = q_BMHD.shape[1:3]
    K, first = k_BMKD.shape[2], int(start)
    _keep(cache, layer, first, rotate(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved), v_BMKD)
    near = grouped(rotate(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved), K)
    far = grouped(rotate(q_BMHD, angles.far_cos_MF, angles.far_sin_MF, how.interleaved), K)
    position_R = (first + torch.arange(M, device=start.device)).repeat_interleave(H // K)
    tiles = (
        ((far if is_sink else near) @ k_BKCD.to(near.dtype).transpose(2, 3), v_BKCD, seen_RC)
        for k_BKCD, v_BKCD, seen_RC, is_sink in _tiles(cache, layer, first, position_R)
    )
    return ungrouped(attended(near, tiles, how, M), M).to(q_BMHD.dtype)


#: [B, M, H * D]. Writes positions `start .. start + M` of one layer.
attend_packed_plain = in_pieces(_attend_packed_plain)


def _keep(cache: PackedCache, layer: int, first: int, k_BMKD: torch.Tensor, v_BMKD: torch.Tensor) -> None:
    """Write the new tokens to the newest blocks and the sinks; pack the block that is old from a position of the pass on."""
    position_M = first + torch.arange(k_BMKD.shape[1], device=k_BMKD.device)
    slot_M = position_M % (RECENT_BLOCKS * BLOCK)
    is_sink_M = position_M < cache.sinks.shape[4]
    for held, sinks, x_BMKD in zip(cache.recent[layer], cache.sinks[layer], (k_BMKD, v_BMKD), strict=True):
        x_BKMD = x_BMKD.transpose(1, 2)
        held.index_copy_(2, slot_M, x_BKMD)
        sinks.index_copy_(2, position_M[is_sink_M], x_BKMD[:, :, is_sink_M])
    newest = int(position_M[-1]) // BLOCK
    block = newest - (RECENT_BLOCKS - 1)
    if block >= 0 and newest * BLOCK >= first:
        at = block % RECENT_BLOCKS * BLOCK
        k_BKCD, v_BKCD = cache.recent[layer, :, :, :, at : at + BLOCK]
        pack(k_BKCD, v_BKCD, cache.stored, cache.group, cache.packed(block, layer))


def _tiles(
    cache: PackedCache, layer: int, first: int, position_R: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]]:
    """Keys and values [B, K, C, D], which of them each row sees [R, C], whether they are sinks."""
    last, sinks = int(position_R[-1]), cache.sinks.shape[4]
    block_R = position_R // BLOCK
    within_C = torch.arange(BLOCK, device=position_R.device)

    def seen(position_C: torch.Tensor, in_reach_R: torch.Tensor) -> torch.Tensor:
        age_RC = position_R[:, None] - position_C
        in_window_RC = (age_RC >= 0) & (age_RC < cache.sliding_window) & (position_C >= sinks)
        return in_window_RC & in_reach_R[:, None]

    oldest = max(0, first - cache.sliding_window + 1) // BLOCK
    for block in range(oldest, max(0, last // BLOCK - 1)):
        k_BKCD, v_BKCD = unpack(
            cache.packed(block, layer), cache.stored, cache.group, cache.head_dim, cache.dtype
        )
        yield k_BKCD, v_BKCD, seen(block * BLOCK + within_C, block < block_R - 1), False
    for block in range(max(0, first // BLOCK - 1), last // BLOCK + 1):
        at = block % RECENT_BLOCKS * BLOCK
        k_BKCD, v_BKCD = cache.recent[layer, :, :, :, at : at + BLOCK]
        yield k_BKCD, v_BKCD, seen(block * BLOCK + within_C, block >= block_R - 1), False
    if sinks:
        sink_S = torch.arange(sinks, device=position_R.device)
        yield *cache.sinks[layer], sink_S <= position_R[:, None], True
