"""The budget of a token in the graph engine: what a step takes, and what it takes without one of its parts.

    python -m tests.benchmarks.ablation [--models random:pythia-2.8b,random:llama-3.1-8b] [--parts steps,parts,attention,prefill]

steps: whole steps over rings and full caches, as fractions of the bandwidth that a copy has in the same run.
parts: a step without its attention, its head, its commit, its norms, programmatic dependent launch; several in one graph.
attention: one layer's attention over full caches, by length. prefill: a chunk of a prompt into rings, a prompt into blocks.
The output of a step that lacks a part is wrong; only its time counts. Each row is printed as a JSON line as it comes.
"""

import argparse
import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.benchmarks.device_time import (
    Bandwidth,
    bandwidth,
    event_time,
    graph_time,
    kv_bytes,
    matrices,
    weight_bytes,
)
from workers.cell import ModelRef
from workers.engines.graph import decode
from workers.engines.graph.cache import GraphCache
from workers.engines.graph.families import describe
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels import FUSED, Kernels
from workers.engines.graph.model import CachedModel
from workers.engines.graph.ring import RingCache
from workers.engines.graph.state import Rules, new_state
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots
from workers.models.load import load_model

PARTS = ("steps", "parts", "attention", "prefill")
SINKS, WINDOW, SLACK = 4, 512, 127
#: Tokens that a timed step may add to a cache.
SPARE = 192


@dataclass
class Ablation:
    weights: Weights
    device: torch.device
    bandwidth: Bandwidth
    model: str

    def row(self, part: str, name: str, **values: Any) -> None:
        print(json.dumps({"part": part, "model": self.model, "name": name, **values}), flush=True)

    def ring(self, batch: int = 1) -> RingCache:
        cache = RingCache(self.weights, batch, RingSlots(SINKS, WINDOW, SLACK), len(self.weights.layers))
        for held in (cache.k_LBKCD, cache.v_LBKCD):
            held.normal_()
        return cache

    def full(self, tokens: int, batch: int = 1) -> FullCache:
        cache = FullCache(self.weights, batch, tokens + SPARE, len(self.weights.layers))
        cache.reserve(tokens + SPARE)
        for block in cache.blocks:
            block.normal_()
        return cache

    def step(self, cache: GraphCache, kernels: Kernels, tokens: int, batch: int = 1) -> Callable[[], None]:
        model = CachedModel(self.weights, cache, kernels)
        state = new_state(batch, 2**16, 8, self.weights.vocab_size, 1.0, self.device)
        state.head.fill_(tokens)
        return lambda: decode.step(model, state, Rules(1.0, (0,)))

    def read(self, cache: GraphCache, tokens: int, rows: int) -> Callable[[], torch.Tensor]:
        model = CachedModel(self.weights, cache, FUSED)
        tokens_1M = torch.ones(1, rows, dtype=torch.int64, device=self.device)
        start = torch.tensor(tokens, device=self.device)
        return lambda: model.read(tokens_1M, start)


def steps(bench: Ablation, lengths: list[int], batches: list[tuple[int, int]]) -> None:
    """A step over rings, and over full caches of some lengths; a pass of five rows beside each."""
    weights, nbytes = bench.weights, weight_bytes(bench.weights)
    floor = graph_time(lambda: _multiply_all(weights))
    _fractions(bench, "all matrices by cuBLAS", floor.median, floor.spread, nbytes, 0)
    cases: list[tuple[str, int, int]] = [("ring", 2000, 1), *(("full", tokens, 1) for tokens in lengths)]
    for kind, tokens, batch in [*cases, *(("full", tokens, batch) for batch, tokens in batches)]:
        cache = bench.ring() if kind == "ring" else bench.full(tokens, batch)
        took = graph_time(bench.step(cache, FUSED, tokens, batch))
        seen = SINKS + WINDOW + 1 if kind == "ring" else tokens
        name = f"{kind}, {tokens} tokens, batch {batch}"
        _fractions(bench, name, took.median, took.spread, nbytes, kv_bytes(weights, seen, batch))
        if batch == 1:
            five = graph_time(bench.read(cache, tokens, 5)).median
            one = graph_time(bench.read(cache, tokens, 1)).median
            bench.row("steps", f"{name}: a pass of five rows over one of one row", ratio=round(five / one, 4))
        del cache
        torch.cuda.empty_cache()


def _multiply_all(weights: Weights) -> None:
    x: dict[int, torch.Tensor] = {}
    for matrix_OI in matrices(weights):
        depth = matrix_OI.shape[1]
        if depth not in x:
            x[depth] = matrix_OI.new_ones(1, depth)
        torch.nn.functional.linear(x[depth], matrix_OI)


def _fractions(bench: Ablation, name: str, took: float, spread: float, nbytes: int, kv: int) -> None:
    values = {"us": round(took * 1e6, 1), "spread_us": round(spread * 1e6, 1)}
    for roof, of in bench.bandwidth._asdict().items():
        if of is not None:
            values[f"weights_over_{roof}"] = round(nbytes / of / took, 4)
            values[f"all_over_{roof}"] = round((nbytes + kv) / of / took, 4)
    bench.row("steps", name, **values)


def parts(bench: Ablation) -> None:
    """A step over rings without one of its parts."""
    weights, cache = bench.weights, bench.ring()

    def took(kernels: Kernels, count: int = 1) -> float:
        step = bench.step(cache, kernels, 2000)
        return graph_time(lambda: [step() for _ in range(count)], max(2, 10 // count)).median / count

    whole = took(FUSED)
    attended = torch.randn(1, 1, weights.heads * weights.head_dim, device=bench.device, dtype=weights.dtype)
    logits_1V = torch.randn(1, weights.vocab_size, device=bench.device)

    def without(name: str, seconds: float) -> None:
        bench.row("parts", name, us=round(seconds * 1e6, 1), saves_us=round((whole - seconds) * 1e6, 1))

    without("whole", whole)
    without("without attention", took(replace(FUSED, attend_ring=lambda *_: attended)))
    without("without the head", took(replace(FUSED, head=lambda *_: logits_1V)))
    without("without the commit", took(replace(FUSED, commit=lambda *_: None)))
    without("four steps in one graph", took(FUSED, 4))
    with _launched_late():
        without("without programmatic dependent launch", took(FUSED))


class _launched_late:  # noqa: N801  (a context manager)
    """Kernels are launched without PDL. Each module of kernels holds the function that says so."""

    NAMES = (
        "linear",
        "down_proj",
        "gated_mlp",
        "attend_ring",
        "attend_blocks",
        "greedy",
        "commit",
        "embed",
        "norm_heads",
        "add_normed",
    )

    def __enter__(self) -> None:
        self._kept = []
        for name in self.NAMES:
            module = importlib.import_module(f"workers.engines.graph.kernels.{name}")
            for function in ("launch_options", "first_launch_options"):
                if hasattr(module, function):
                    self._kept.append((module, function, getattr(module, function)))
                    setattr(module, function, lambda: {"PDL": False})

    def __exit__(self, *_: object) -> None:
        for module, function, value in self._kept:
            setattr(module, function, value)


def attention(bench: Ablation, lengths: list[int]) -> None:
    """One layer's attention of a step over full caches, as a fraction of the copy bandwidth."""
    from workers.engines.graph.kernels.attend_blocks import BlockSplit, attend_blocks

    weights = replace(bench.weights, layers=bench.weights.layers[:8])
    few = replace(bench, weights=weights)
    q = torch.randn(1, 1, weights.heads, weights.head_dim, device=bench.device, dtype=weights.dtype)
    k = torch.randn(1, 1, weights.kv_heads, weights.head_dim, device=bench.device, dtype=weights.dtype)
    for tokens in lengths:
        cache, start = few.full(tokens), torch.tensor(tokens, device=bench.device)
        how = weights.layers[0].attention
        _, turns = FUSED.embed(
            weights, torch.ones(1, 1, dtype=torch.int64, device=bench.device), start, cache.far_limit
        )
        for cut in (BlockSplit(4, 2, 3), BlockSplit(4, 3, 2), BlockSplit(4, 4, 2), BlockSplit(4, 2, 4)):
            run = functools.partial(_attend_all, attend_blocks, q, k, cache, start, turns[how.rope], how, cut)
            took = graph_time(run, 8, 3).median
            bench.row(
                "attention", f"{tokens} tokens", cut=str(cut), us_a_layer=round(took * 1e6 / len(weights.layers), 2),
                over_copy=round(kv_bytes(weights, tokens) / bench.bandwidth.copy / took, 3),
            )  # fmt: skip
        del cache
        torch.cuda.empty_cache()


def _attend_all(attend, q, k, cache, start, turn, how, cut) -> None:
    for layer in range(cache.shape[0]):
        attend(q, k, k, cache, layer, start, turn, how, cut)


def prefill(bench: Ablation) -> None:
    """Chunks of a prompt into rings; whole prompts into blocks."""
    weights = bench.weights
    model = CachedModel(weights, bench.ring(), FUSED)
    start = torch.tensor(10_000, device=bench.device)
    for tokens in (512, 1024, 2048, 4096):
        ids = torch.randint(1, 50_000, (1, tokens), device=bench.device)
        run = functools.partial(model.prefill, ids, start, alone=False)
        run()
        bench.row(
            "prefill", f"chunk of {tokens} into rings", tokens_per_s=round(tokens / event_time(run).median)
        )
    for tokens in (1000, 8000):
        ids = torch.randint(1, 50_000, (1, tokens), device=bench.device)
        run = functools.partial(
            CachedModel(weights, bench.full(tokens), FUSED).prefill, ids, start * 0, alone=True
        )
        run()
        bench.row(
            "prefill", f"prompt of {tokens} into blocks", tokens_per_s=round(tokens / event_time(run).median)
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="random:pythia-2.8b,random:llama-3.1-8b,random:llama-3.2-1b")
    parser.add_argument("--parts", default="steps,parts,attention,prefill", help=", ".join(PARTS))
    parser.add_argument("--lengths", default="64,1000,8000,32000", help="of full caches")
    parser.add_argument("--batch", default="16x4000", help="sequences x tokens of a full cache, or none")
    args = parser.parse_args()
    device = torch.device("cuda")
    measured = bandwidth(device)
    print(
        json.dumps(
            {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **measured._asdict()}
        ),
        flush=True,
    )
    lengths = [int(length) for length in args.lengths.split(",")]
    batches = [tuple(map(int, args.batch.split("x")))] if args.batch != "none" else []
    for name in args.models.split(","):
        loaded = load_model(name, ModelRef(target=name), device)
        bench = Ablation(describe(loaded.model), device, measured, name)
        for part in args.parts.split(","):
            if part == "steps":
                steps(bench, lengths, batches)
            elif part == "attention":
                attention(bench, lengths)
            else:
                {"parts": parts, "prefill": prefill}[part](bench)
        del loaded, bench
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
