"""A parallel residual in one launch, on a GPU, at the widths of Pythia-2.8B: several programs share a head and a product."""

import importlib
from dataclasses import replace

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from workers.engines.graph.cache import GraphCache
from workers.engines.graph.families import describe
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels import FUSED, Kernels
from workers.engines.graph.model import CachedModel
from workers.engines.graph.ring import RingCache
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots


def wide() -> Weights:
    config = GPTNeoXConfig(
        hidden_size=2560, num_hidden_layers=2, num_attention_heads=32, intermediate_size=10240, vocab_size=512
    )
    torch.manual_seed(0)
    return describe(GPTNeoXForCausalLM(config).to("cuda", torch.bfloat16))


def passes(weights: Weights, kernels: Kernels, kind: str, filled: int) -> torch.Tensor:
    """Logits of a pass of five rows, then of a pass of one, behind `filled` tokens of noise."""
    cache: GraphCache
    if kind == "ring":
        cache = RingCache(weights, 1, RingSlots(4, 512, 127), 2)
    else:
        cache = FullCache(weights, 1, filled + 6, 2)
    cache.reserve(filled + 6)
    torch.manual_seed(1)
    cache.fill(0, filled)
    reader = CachedModel(weights, cache, kernels)
    tokens_15 = torch.arange(1, 6, device="cuda")[None]
    five = reader.read(tokens_15, torch.tensor(filled, device="cuda"))
    one = reader.read(tokens_15[:, :1], torch.tensor(filled + 5, device="cuda"))
    return torch.cat([five, one])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("kind", "filled"), [("ring", 2000), ("blocks", 64), ("blocks", 1000), ("blocks", 2000)]
)
@torch.inference_mode()
def test_one_launch_gives_the_bits_of_a_launch_each(
    kind: str, filled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be just too long for one launch, its speculative twin for none: their tokens must agree."""
    monkeypatch.setattr(importlib.import_module("workers.engines.graph.kernels.beside"), "MOST_SLOTS", 2**20)
    weights = wide()
    together, apart = (
        passes(weights, kernels, kind, filled) for kernels in (FUSED, replace(FUSED, beside=None))
    )
    assert torch.equal(together, apart)
