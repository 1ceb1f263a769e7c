"""Keys and values in fewer bits, in plain torch: codes, scales and zeros of a block.

x = code * scale + zero. int8, fp8: scale = largest magnitude / largest code, no zero. int4: zero = smallest number, two codes in
a byte: token c below, token c + 32 above. Keys lie token by token, values channel by channel: what a product sums over is adjacent,
as tensor cores read it. Scales are rounded to the model's dtype before codes are chosen.
C the 64 tokens of a block, D numbers of a head.
"""

import torch

from workers.engines.graph.packed_cache import Group
from workers.engines.shared.rope import working
from workers.engines.sizes import BLOCK
from workers.kv_dtype import StoredAs


def pack(
    k_BKCD: torch.Tensor, v_BKCD: torch.Tensor, stored: StoredAs, group: Group, into_BKN: torch.Tensor
) -> None:
    """Write what a block holds, [B, K, bytes]."""
    parts = (
        (k_BKCD, 2, 0, group.k_scales, group.k_zeros),
        (v_BKCD, 3, group.v_codes, group.v_scales, group.v_zeros),
    )
    for x_BKCD, over, codes_at, scales_at, zeros_at in parts:
        code_BKCD, scale, zero = quantised(x_BKCD, over, stored)
        bytes_BKCD = _bytes(code_BKCD, stored)
        _put(into_BKN, codes_at, bytes_BKCD if over == 2 else bytes_BKCD.transpose(2, 3))
        _put(into_BKN, scales_at, scale.squeeze(over))
        if zero is not None:
            _put(into_BKN, zeros_at, zero.squeeze(over))


def unpack(
    from_BKN: torch.Tensor, stored: StoredAs, group: Group, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, K, C, D] in working precision. `dtype`: of the scales."""
    keys = _numbers(from_BKN, 0, (group.k_scales, group.k_zeros), 2, stored, head_dim, dtype)
    values = _numbers(from_BKN, group.v_codes, (group.v_scales, group.v_zeros), 3, stored, head_dim, dtype)
    return keys, values


def quantised(
    x_BKCD: torch.Tensor, over: int, stored: StoredAs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes in working precision; scale, and zero where there is one, in the dtype of `x`, one for each group along `over`."""
    wide = x_BKCD.to(working(x_BKCD.dtype))
    zero = None
    span = wide.abs().amax(over, keepdim=True)
    if stored.has_zeros:
        zero = wide.amin(over, keepdim=True).to(x_BKCD.dtype)
        wide = wide - zero.to(wide.dtype)
        span = wide.amax(over, keepdim=True)
    scale = (span / torch.full_like(span, stored.largest)).to(x_BKCD.dtype)
    step = scale.to(wide.dtype)
    code = wide / torch.where(step > 0, step, 1)
    if stored.name != "fp8":
        code = (code + 0.5).floor()
    return code.clamp(0 if stored.has_zeros else -stored.largest, stored.largest), scale, zero


def _bytes(code_BKCD: torch.Tensor, stored: StoredAs) -> torch.Tensor:
    if stored.name == "fp8":
        return code_BKCD.to(torch.float8_e4m3fn).view(torch.uint8)
    if stored.bits == 8:
        return code_BKCD.to(torch.int8).view(torch.uint8)
    low, high = code_BKCD.to(torch.uint8).chunk(2, dim=2)
    return low | (high << 4)


def _put(into_BKN: torch.Tensor, at: int, x: torch.Tensor) -> None:
    flat = x.contiguous().flatten(2).view(torch.uint8)
    into_BKN[..., at : at + flat.shape[-1]] = flat


def _numbers(
    from_BKN: torch.Tensor,
    codes_at: int,
    about_at: tuple[int, int],
    over: int,
    stored: StoredAs,
    head_dim: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    tokens = BLOCK * stored.bits // 8
    raw = from_BKN[..., codes_at : codes_at + tokens * head_dim].contiguous()
    raw = raw.unflatten(2, (tokens, head_dim)) if over == 2 else raw.unflatten(2, (head_dim, tokens)).mT
    wide = working(dtype)
    if stored.name == "fp8":
        code = raw.contiguous().view(torch.float8_e4m3fn).to(wide)
    elif stored.bits == 8:
        code = raw.contiguous().view(torch.int8).to(wide)
    else:
        code = torch.cat([raw & 15, raw >> 4], 2).to(wide)
    count = head_dim if over == 2 else BLOCK
    scale, zero = (
        from_BKN[..., at : at + count * width].contiguous().view(dtype).to(wide).unsqueeze(over)
        for at in about_at
    )
    return code * scale + zero if stored.has_zeros else code * scale
