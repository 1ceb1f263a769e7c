"""Attention of a prompt's tokens over the full cache, where they are many: a chunk of it, or all of it in one pass."""

import torch
from torch.nn import functional

from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import BlockSplit, attend_blocks, strides
from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import load_rotated, wait_for_previous
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention
from workers.engines.sizes import BLOCK

#: Its queries are programs enough, so nothing is split and merged, whatever came before.
CUT = BlockSplit(warps=4, stages=2, at_once=None, rows=64)
#: Float32 is multiplied without tensor cores, in registers: as few rows as decoding takes.
CUT_FLOAT32 = BlockSplit(warps=4, stages=2, at_once=None)


@jit(do_not_specialize=["M"])
def _rotate(
    x, x_row, x_head, cos, sin, out, M,
    HEADS: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    head, b = tl.program_id(1), tl.program_id(2)
    m = tl.program_id(0) * 16 + tl.arange(0, 16)
    row = (b * M + m).to(tl.int64)
    x_RD = load_rotated(x, row * x_row + head * x_head, m < M, cos, sin, m, D, F, INTERLEAVED, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    place_RD = out + ((row * HEADS + head) * D)[:, None] + d[None, :]
    tl.store(place_RD, x_RD, mask=(m < M)[:, None] & (d < D)[None, :])


def rotate_heads(
    x_BMHD: torch.Tensor, cos_MF: torch.Tensor, sin_MF: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """`rope.rotate` in one launch; contiguous."""
    B, M, H, D = x_BMHD.shape
    out_BMHD = torch.empty(B, M, H, D, dtype=x_BMHD.dtype, device=x_BMHD.device)
    _rotate[(ceil_div(M, 16), H, B)](
        x_BMHD, *strides(x_BMHD), cos_MF, sin_MF, out_BMHD, M, H, D, cos_MF.shape[1], interleaved, max(16, power_of_two(D)),
        num_warps=4, **launch_options(),
    )  # fmt: skip
    return out_BMHD


@jit(do_not_specialize=["M", "layer"])
def _keep_blocks(
    k, v, v_row, v_head, table, layer, M,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one block of one key/value head of one sequence."""
    wait_for_previous(PDL)
    index, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inside = (index * BLOCK + c < M)[:, None] & (d < D)[None, :]
    row = (b * M + index * BLOCK + c).to(tl.int64)
    k_CD = tl.load(k + ((row * K + head) * D)[:, None] + d[None, :], mask=inside, other=0.0)
    v_CD = tl.load(v + (row * v_row + head * v_head)[:, None] + d[None, :], mask=inside, other=0.0)
    block = tl.load(table + index).to(tl.pointer_type(k.dtype.element_ty))
    here = ((layer * 2 * B + b) * K + head).to(tl.int64) * BLOCK * D
    place = block + here + c[:, None] * D + d[None, :]
    tl.store(place, k_CD, mask=inside)
    tl.store(place + B * K * BLOCK * D, v_CD, mask=inside)


def attend_alone(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_blocks_plain` for a prompt in one pass, which nothing comes before: torch's own attention, which neither
    caps scores nor has learned ones."""
    if how.cap is not None or how.sinks_H is not None:
        return attend_chunk(q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how)
    B, M, H, D = q_BMHD.shape
    K = k_BMKD.shape[2]
    q_BMHD = rotate_heads(q_BMHD, angles.cos_MF, angles.sin_MF, how.interleaved)
    k_BMKD = rotate_heads(k_BMKD, angles.cos_MF, angles.sin_MF, how.interleaved)
    _keep_blocks[(ceil_div(M, BLOCK), K, B)](
        k_BMKD, v_BMKD, *strides(v_BMKD), cache.table, layer, M, B, K, D, BLOCK, max(16, power_of_two(D)),
        num_warps=4, **launch_options(),
    )  # fmt: skip
    q, k, v = (x.transpose(1, 2) for x in (q_BMHD, k_BMKD, v_BMKD))
    out_BHMD = functional.scaled_dot_product_attention(
        q, k, v, is_causal=M > 1, scale=how.scale, enable_gqa=H != K
    )
    return out_BHMD.transpose(1, 2).reshape(B, M, H * D)


def attend_chunk(
    q_BMHD: torch.Tensor,
    k_BMKD: torch.Tensor,
    v_BMKD: torch.Tensor,
    cache: FullCache,
    layer: int,
    start: torch.Tensor,
    angles: Angles,
    how: Attention,
) -> torch.Tensor:
    """`attend_blocks_plain` for a chunk of a prompt: no more memory than its own rows."""
    cut = CUT_FLOAT32 if q_BMHD.dtype == torch.float32 else CUT
    return attend_blocks(q_BMHD, k_BMKD, v_BMKD, cache, layer, start, angles, how, cut)
