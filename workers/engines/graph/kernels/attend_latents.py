"""Attention of M new tokens over latents (MLA), absorbed: keep their rows, then read what may be seen as one key/value head
whose values are the first part of its keys. Nothing is expanded.

Plain torch, which is the specification; `attend_latents_tiles` is the same in Triton. W the width of a row: the latent, and the
rotated numbers behind it.
"""

from collections.abc import Iterator

import torch

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import grouped, ungrouped, write_blocks
from workers.engines.graph.kernels.attend_packed import in_pieces
from workers.engines.graph.kernels.jit import ceil_div
from workers.engines.graph.kernels.norm import norm_plain
from workers.engines.graph.kernels.scores import attended
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import Angles, rotate
from workers.engines.graph.weights import Attention, Latent
from workers.engines.sizes import BLOCK, LATENT_QUERIES


def latent_of(how: Attention) -> Latent:
    assert how.latent is not None
    return how.latent


def attend_latent_blocks_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """[B, M, H * D]. Writes positions `start .. start + M` of one layer. Queries are made as wide as a latent a few at a time, so
    that a long pass needs no memory for all of them."""
    first, M = int(start), q_BMHD.shape[1]
    write_blocks(cache, layer, first, _rows(k_BMKD, angles, how))
    found = []
    for begin in range(0, M, LATENT_QUERIES):
        piece = slice(begin, min(begin + LATENT_QUERIES, M))
        near_BMHW = _widened(q_BMHD[:, piece], angles.cos_MF[piece], angles.sin_MF[piece], how)
        tiles = ((near_BMHW, *tile) for tile in _blocks(cache, layer, first + piece.start, near_BMHW))
        found.append(_read(near_BMHW, tiles, how, q_BMHD.dtype))
    return torch.cat(found, 1)


def _blocks(
    cache: FullCache, layer: int, first: int, q_BMHW: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows [B, 1, C, W] of each block, and which of them each query sees [M, C]."""
    position_M = first + torch.arange(q_BMHW.shape[1], device=q_BMHW.device)
    within_C = torch.arange(BLOCK, device=q_BMHW.device)
    for index, block in enumerate(cache.blocks[: ceil_div(first + len(position_M), BLOCK)]):
        yield block[layer, 0], index * BLOCK + within_C <= position_M[:, None]


def _attend_latent_ring_plain(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: RingCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    ring, held_B1CW = cache.ring, cache.k_LBKCD[layer]
    position_M = start + torch.arange(q_BMHD.shape[1], device=start.device)
    held_B1CW.index_copy_(2, ring.slot(position_M), _rows(k_BMKD, angles, how).transpose(1, 2))
    near, far = (
        _widened(q_BMHD, cos_MF, sin_MF, how)
        for cos_MF, sin_MF in (
            (angles.cos_MF, angles.sin_MF),
            (angles.far_cos_MF, angles.far_sin_MF),
        )
    )
    visible_MC = ring.visible(position_M, start + len(position_M))
    parts = (far, slice(0, ring.sinks)), (near, slice(ring.sinks, None))
    tiles = ((q, held_B1CW[:, :, part], visible_MC[:, part]) for q, part in parts if q is near or ring.sinks)
    return _read(near, tiles, how, q_BMHD.dtype)


#: [B, M, H * D]. Writes positions `start .. start + M` of one layer.
attend_latent_ring_plain = in_pieces(_attend_latent_ring_plain)


def _rows(k_BMKD: torch.Tensor, angles: Angles, how: Attention) -> torch.Tensor:
    """[B, M, 1, W] as they are kept: the latent normed, the rest rotated."""
    latent = latent_of(how)
    normed = norm_plain(k_BMKD[..., : latent.rank], latent.norm)
    turned = rotate(k_BMKD[..., latent.rank :], angles.cos_MF, angles.sin_MF, how.interleaved)
    return torch.cat([normed, turned], -1)


def _widened(
    q_BMHD: torch.Tensor, cos_MF: torch.Tensor, sin_MF: torch.Tensor, how: Attention
) -> torch.Tensor:
    """[B, M, H, W]: queries as the rows see them."""
    latent = latent_of(how)
    plain, turning = q_BMHD.split([q_BMHD.shape[3] - latent.turned, latent.turned], -1)
    turned = rotate(turning, cos_MF, sin_MF, how.interleaved)
    return torch.cat([torch.einsum("bmhd,hzd->bmhz", plain, latent.keys_HZD), turned], -1)


def _read(
    like_BMHW: torch.Tensor,
    tiles: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    how: Attention,
    dtype: torch.dtype,
) -> torch.Tensor:
    """[B, M, H * D]. `tiles`: queries, rows [B, 1, C, W], which of them each query sees [M, C]."""
    latent, (M, H) = latent_of(how), like_BMHW.shape[1:3]
    wide_B1RW = grouped(like_BMHW, 1)
    products = (
        (
            grouped(q_BMHW, 1) @ row_B1CW.to(wide_B1RW.dtype).transpose(2, 3),
            row_B1CW[..., : latent.rank],
            seen_MC.repeat_interleave(H, dim=0),
        )
        for q_BMHW, row_B1CW, seen_MC in tiles
    )
    sum_B1RZ = attended(wide_B1RW[..., : latent.rank], products, how, M)
    sum_BMHZ = ungrouped(sum_B1RZ, M).unflatten(-1, (H, latent.rank)).to(dtype)
    return torch.einsum("bmhz,hdz->bmhd", sum_BMHZ, latent.values_HDZ).flatten(2)
