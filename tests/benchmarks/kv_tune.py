"""Attention over keys and values in fewer bits, alone, on a GPU: time of a layer at one length, by how the kernel is cut, beside
what its bytes need and beside the kernel of the full cache.

    python -m tests.benchmarks.kv_tune [--tokens 32000]
"""

import argparse
import importlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tests.benchmarks.engine import seconds
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import BlockSplit, attend_blocks
from workers.engines.graph.packed_cache import PackedCache
from workers.engines.graph.rope import angles
from workers.engines.graph.weights import Attention, Rotary
from workers.kv_dtype import STORED_AS

LAYERS = 8
#: name -> query heads, key/value heads, numbers of a head, rotary frequencies
SHAPES = {"pythia-2.8b": (32, 32, 80, 10), "llama-3.1-8b": (32, 8, 128, 64)}
#: at_once, warps, stages
CUTS = ((2, 4, 3), (2, 4, 4), (3, 4, 3), (3, 4, 4), (4, 4, 3), (2, 8, 3), (2, 8, 4))
tiles: Any = importlib.import_module("workers.engines.graph.kernels.attend_packed_tiles")
Heads = tuple[int, int, int, int]


def weights_of(heads: Heads, device: torch.device) -> Any:
    """What a cache asks of weights."""
    return SimpleNamespace(
        kv_heads=heads[1], head_dim=heads[2], kept_dims=heads[2:3] * 2, dtype=torch.bfloat16, device=device
    )


def step_of(
    attend: Any, cache: Any, heads: Heads, layers: int, tokens: int, device: torch.device
) -> Callable[[], None]:
    """What attends to `tokens` tokens in each layer."""
    H, K, D, F = heads
    q, k, v = (torch.randn(1, 1, n, D, device=device, dtype=torch.bfloat16) for n in (H, K, K))
    at = torch.tensor(tokens - 1, device=device)
    turn = angles(at, 1, Rotary(torch.rand(F, device=device, dtype=torch.float64)), 2**62, torch.bfloat16)
    how = Attention(scale=D**-0.5)

    def step() -> None:
        for layer in range(layers):
            attend(q, k, v, cache, layer, at, turn, how)

    return step


def of_layer(attend: Any, cache: Any, heads: Heads, tokens: int, device: torch.device) -> float:
    """Seconds, of all layers in one graph, so that no layer finds its keys in the L2 cache."""
    step = step_of(attend, cache, heads, LAYERS, tokens, device)
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return seconds(graph.replay, 7, device) / LAYERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32_000)
    tokens, device = parser.parse_args().tokens, torch.device("cuda", 0)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    for name, heads in SHAPES.items():
        weights = weights_of(heads, device)
        full = FullCache(weights, 1, tokens + 1, LAYERS)
        full.reserve(tokens)
        full.fill(0, tokens)
        auto = of_layer(attend_blocks, full, heads, tokens, device)
        nbytes = full.nbytes() / LAYERS
        print(
            json.dumps({"shape": name, "kv": "auto", "us": auto * 1e6, "TB/s": nbytes / auto / 1e12}),
            flush=True,
        )
        del full
        for stored in STORED_AS.values():
            cache = PackedCache(weights, 1, tokens + 1, LAYERS, stored)
            cache.reserve(tokens)
            cache.fill(0, tokens)
            for at_once, warps, stages in CUTS:
                tiles.CUT = BlockSplit(warps, stages, at_once)
                row: dict[str, Any] = {
                    "shape": name,
                    "kv": stored.name,
                    "at_once": at_once,
                    "warps": warps,
                    "stages": stages,
                }
                try:
                    took = of_layer(tiles.attend_packed, cache, heads, tokens, device)
                    row |= {
                        "us": took * 1e6,
                        "TB/s": cache.nbytes() / LAYERS / took / 1e12,
                        "of_auto": auto / took,
                    }
                except Exception as error:  # a cut that the card has no room for
                    row |= {"error": f"{type(error).__name__}: {error}"[:200]}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
