"""The attention that CUDA would choose, and what it allocates."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from workers.rehearsal.attention import attend, chosen
from workers.rehearsal.stand_in import CUDA, standing_in
from workers.rehearsal.storages import StorageLog

FLASH, EFFICIENT, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH


def tensors(
    queries: int, keys: int, heads: int, key_heads: int, dim: int, value_dim: int
) -> list[torch.Tensor]:
    half = {"dtype": torch.bfloat16, "device": "meta"}
    return [
        torch.empty(1, heads, queries, dim, **half),
        torch.empty(1, key_heads, keys, dim, **half),
        torch.empty(1, key_heads, keys, value_dim, **half),
    ]


@pytest.mark.parametrize(
    ("shape", "masked", "causal", "grouped", "backend"),
    [
        ((64, 64, 8, 8, 128, 128), False, True, False, FLASH),
        ((1, 64, 8, 2, 128, 128), False, False, True, FLASH),
        ((16, 64, 8, 8, 128, 128), True, False, False, EFFICIENT),
        ((16, 64, 8, 8, 128, 128), False, True, False, EFFICIENT),
        ((64, 64, 8, 8, 192, 128), False, True, False, EFFICIENT),
        ((64, 64, 8, 8, 512, 512), False, True, False, EFFICIENT),
        ((16, 64, 8, 2, 128, 128), True, False, True, MATH),
        ((64, 64, 8, 8, 20, 20), True, False, False, MATH),
    ],
)
def test_the_backend_follows_mask_heads_and_sizes(
    shape: tuple[int, ...], masked: bool, causal: bool, grouped: bool, backend: SDPBackend
) -> None:
    mask = torch.empty(1, 1, shape[0], shape[1], dtype=torch.bool, device="meta") if masked else None
    assert chosen(*tensors(*shape), mask, causal, grouped) is backend


def allocated(shape: tuple[int, ...], masked: bool, causal: bool = False, grouped: bool = False) -> list[int]:
    given = tensors(*shape)
    mask = (
        torch.empty(1, 1, shape[0], shape[1], dtype=torch.bool, device=CUDA.type and "meta")
        if masked
        else None
    )
    with standing_in(), StorageLog([*given, *([] if mask is None else [mask])]) as log:
        attend(*given, mask, is_causal=causal, enable_gqa=grouped)
    return [event for event in log.events if event >= 0]


def test_flash_attention_keeps_its_output_and_the_sums_logarithms() -> None:
    assert allocated((1024, 1024, 32, 32, 128, 128), False, causal=True) == [
        *(1024 * 32 * 128 * 2, 32 * 1024 * 4),
        *(16, 8),
    ]


def test_a_masked_chunk_spells_its_mask_out_in_numbers() -> None:
    sizes = allocated((1024, 4096, 32, 32, 128, 128), True)
    assert sizes == [2, 2, 1024 * 4096 * 2, 1024 * 32 * 128 * 2]


def test_heads_beyond_128_are_summed_in_float32_beside_the_output() -> None:
    assert allocated((1024, 1024, 16, 16, 192, 128), False, causal=True) == [
        1024 * 16 * 128 * 2,
        1024 * 16 * 128 * 4,
    ]


def test_keys_are_split_where_one_token_would_leave_the_card_idle() -> None:
    # As recorded: 8 key heads of 64 numbers, 6,000 keys in 24 blocks.
    assert allocated((1, 6000, 32, 8, 64, 64), False, grouped=True) == [4096, 128, 3072, 196_608, 16, 8]


def test_math_makes_scores_of_every_query_and_key() -> None:
    assert max(allocated((256, 256, 4, 4, 20, 20), True)) >= 4 * 256 * 256 * 2
