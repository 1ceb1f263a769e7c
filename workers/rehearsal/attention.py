"""What `scaled_dot_product_attention` allocates on a card, by the kernel that CUDA would choose.

B batch, H query heads, K key heads, M queries, N keys, D numbers per head.
"""

import math
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

#: The mask's last dimension is padded to a multiple of this for the memory-efficient kernel.
_ALIGNED = 8
#: Numbers per head up to which that kernel keeps its sums in registers.
_IN_REGISTERS = 128
#: Of an H100 or H200.
MULTIPROCESSORS = 132


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    backend = chosen(query, key, value, attn_mask, is_causal, enable_gqa)
    if backend is SDPBackend.MATH:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    B, H, M, _ = query.shape
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = _additive(attn_mask, query.dtype)
    if backend is SDPBackend.EFFICIENT_ATTENTION:
        if attn_mask is not None and attn_mask.shape[-1] % _ALIGNED:
            attn_mask = torch.nn.functional.pad(attn_mask, (0, -attn_mask.shape[-1] % _ALIGNED))
        out = torch.empty(B, M, H, value.shape[-1], dtype=query.dtype, device=query.device)
        if max(query.shape[-1], value.shape[-1]) > _IN_REGISTERS:
            sums = torch.empty(out.shape, dtype=torch.float32, device=out.device)
            del sums
        return out.transpose(1, 2)
    return _flash(query, key, value)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The boolean mask as numbers to be added, with the two numbers it is made of."""
    hidden = torch.empty((), dtype=dtype, device=mask.device)
    seen = torch.empty((), dtype=dtype, device=mask.device)
    added = torch.empty(mask.shape, dtype=dtype, device=mask.device)
    del seen, hidden
    return added


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Output and log-sum-exp; where few blocks of queries would leave the card idle, the parts of its split keys."""
    B, H, M, D = query.shape
    out = torch.empty_like(query.transpose(1, 2))  # in the order in which the queries lie
    numbers = partial(torch.empty, dtype=torch.float32, device=query.device)
    kept = [numbers(B, H, M)]
    K, N = key.shape[1], key.shape[2]
    # One query per head: the queries that share a key head become the queries of that head.
    heads, queries = (K, H // K) if M == 1 and H > K else (H, M)
    count = _splits(B * heads * -(-queries // 64), -(-N // (256 if D <= 64 else 128 if D <= 128 else 64)))
    parts = []
    if count > 1:
        rounded = -(-D // 32) * 32 if D <= 128 else -(-D // 64) * 64
        parts.append(numbers(count, B, H, M))
        parts.append(numbers(count, B, H, M, rounded))
    kept.append(torch.empty(2, dtype=torch.int64, device=query.device))  # the random generator's state
    kept.append(torch.empty(1, dtype=torch.int64, device=query.device))
    for tensors in (parts, kept):
        while tensors:
            tensors.pop(0)
    return out.transpose(1, 2)


def _splits(blocks: int, key_blocks: int) -> int:
    """Into how many parts flash attention splits the keys, to keep two blocks on each multiprocessor busy."""
    slots = 2 * MULTIPROCESSORS
    if blocks >= 0.8 * slots:
        return 1
    shares: dict[int, float] = {}
    for parts in range(1, min(128, slots, key_blocks) + 1):
        if parts == 1 or -(-key_blocks // parts) != -(-key_blocks // (parts - 1)):
            waves = blocks * parts / slots
            shares[parts] = waves / math.ceil(waves)
    best = max(shares.values(), default=1.0)
    return next((parts for parts, share in shares.items() if share >= 0.85 * best), 1)


def chosen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
) -> SDPBackend:
    half = query.dtype in (torch.float16, torch.bfloat16)
    dims = {query.shape[-1], key.shape[-1], value.shape[-1]}
    square = query.shape[-2] == key.shape[-2]
    if half and attn_mask is None and len(dims) == 1 and max(dims) <= 256 and (square or not is_causal):
        return SDPBackend.FLASH_ATTENTION
    if not enable_gqa and all(dim % (8 if half else 4) == 0 for dim in dims):
        return SDPBackend.EFFICIENT_ATTENTION
    return SDPBackend.MATH
