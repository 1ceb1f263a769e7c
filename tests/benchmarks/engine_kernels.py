"""Kernels on a real device: against their twins, plain against speculative bit for bit, and a table of tiles."""

import json
from collections.abc import Callable
from typing import Any

import torch

from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.graph import open_session
from workers.engines.graph.decode import Rules
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels import FUSED, PLAIN
from workers.engines.graph.kernels.attend_blocks import BlockSplit, attend_blocks
from workers.engines.graph.kernels.attend_ring import RingSplit, attend_ring
from workers.engines.graph.kernels.down_proj import down_proj
from workers.engines.graph.kernels.gated_mlp import gated_mlp
from workers.engines.graph.kernels.linear import Job, Tile, head, linear
from workers.engines.graph.model import CachedModel
from workers.engines.graph.ring import RingCache
from workers.engines.graph.weights import Weights
from workers.engines.shared.slots import RingSlots
from workers.modes import Speculation

TILES = [
    Tile(outputs, depth, warps, stages, rows)
    for outputs, depth, warps, stages, rows in (
        (32, 128, 4, 4, 16), (32, 256, 4, 3, 8), (64, 64, 4, 4, 16), (64, 64, 4, 6, 16), (64, 128, 4, 4, 8),
        (128, 64, 4, 5, 16),
    )
]  # fmt: skip


RING_CUTS = [RingSplit(*cut) for cut in ((32, 4), (64, 4), (64, 8), (128, 4), (128, 8))]
BLOCK_CUTS = [
    BlockSplit(*cut)
    for cut in ((4, 4, 3), (8, 4, 4), (12, 4, 4), (12, 4, 5), (16, 4, 4), (16, 8, 4), (24, 4, 4))
]


def say(what: str, **values: Any) -> None:
    print(json.dumps({"check": what, **values}), flush=True)


def gap(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return float((actual - expected).norm() / expected.norm())


def on(device: torch.device, family: str, dtype: torch.dtype, **fields: Any):
    model = build(family, dtype, **fields)
    model.model.to(device)
    return model


@torch.inference_mode()
def check(device: torch.device) -> None:
    """Relative errors against the same weights in float64 on the host; then losslessness through the graphs."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for family in ("neox", "llama") if dtype != torch.float16 else ("neox-sequential",):
            for mode in ("streaming", "baseline"):
                ids = tokens(300)[0]
                target = on(device, family, dtype)
                fused = open_session(cell(mode, window=20), target, None).logits(ids)
                twin = open_session(cell(mode, window=20), target, None)
                twin._kernels = PLAIN
                exact_model = build(family, torch.float32)
                exact_model.model.load_state_dict(target.model.state_dict())
                exact_model.model.to(torch.float64)
                exact = open_session(cell(mode, window=20), exact_model, None).logits(ids)
                say(
                    f"{family} {mode} {str(dtype)[6:]}",
                    kernels=gap(fused, exact),
                    twins=gap(twin.logits(ids), exact),
                )
    for family in ("neox", "llama"):
        for mode in ("streaming", "baseline"):
            _check_prompt(device, family, mode)
    for dtype in (torch.float32, torch.bfloat16):
        for family in ("neox", "llama"):
            target, draft = on(device, family, dtype), on(device, family, dtype, layers=1, seed=3)
            for policy in ("streaming", "baseline"):
                plain = open_session(cell(policy, window=20, repetition_penalty=1.2), target, None)
                expected = plain.generate(tokens(90), 700, Heard()).ids_BT
                for acceptance in (None, 0.8):
                    speculation = Speculation(gamma=4, acceptance=acceptance)
                    asked = cell(f"{policy}+spec", window=20, repetition_penalty=1.2, speculation=speculation)
                    generated = open_session(asked, target, draft).generate(tokens(90), 700, Heard())
                    same = int((generated.ids_BT == expected).long().cumprod(1).sum())
                    say(
                        f"{family} {policy}+spec {str(dtype)[6:]} {acceptance}",
                        equal_to_plain=f"{same} of 700", rounds=generated.rounds, accepted=generated.accepted,
                    )  # fmt: skip


def _check_prompt(device: torch.device, family: str, mode: str) -> None:
    """Chunks of a prompt, by the captured graph (rings) or over blocks, and as plain torch; against float64."""
    prompt = tokens(700)
    errors = []
    exact_model = build(family, torch.float32)
    exact_model.model.to(torch.float64)
    exact = open_session(cell(mode, window=20, prefill_chunk=100), exact_model, None)
    exact.generate(prompt, 4, Heard())
    for kernels in (FUSED, PLAIN):
        session = open_session(
            cell(mode, window=20, prefill_chunk=100), on(device, family, torch.float32), None
        )
        session._kernels = kernels
        session.generate(prompt, 4, Heard())
        errors.append(gap(session._execution.prefill.last_BE, exact._execution.prefill.last_BE))
    say(f"prompt {family} {mode}", kernels=errors[0], twins=errors[1])


def graph_seconds(function: Callable[[], Any], repeats: int = 20) -> float:
    """Of one call, replayed from a graph."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


@torch.inference_mode()
def total(*matrices: Any) -> int:
    """Bytes of the weights."""
    return sum(matrix.weight_OI.nbytes for matrix in matrices)


def tiles(weights: Weights, row: Callable[..., None]) -> None:
    """Each kernel over all layers in one graph, so that no weight is found in the L2 cache; per layer."""
    if weights.device.type != "cuda":
        raise SystemExit("the part kernels needs a CUDA device")
    layers, E = weights.layers, weights.embedding_VE.shape[1]

    def timed(name: str, function: Callable[[], Any], nbytes: int, calls: int, **more: Any) -> None:
        took = graph_seconds(function)
        row("kernels", name, took / calls * 1e6, "us", TBps=round(nbytes / took / 1e12, 3), **more)

    for M in (1, 5):
        x = torch.randn(M, E, device=weights.device, dtype=weights.dtype)
        a = torch.randn(M, layers[0].out.weight_OI.shape[1], device=weights.device, dtype=weights.dtype)
        h = torch.randn(M, layers[0].down.weight_OI.shape[1], device=weights.device, dtype=weights.dtype)
        wide = [(*layer.qkv, *((layer.up,) if weights.parallel else ())) for layer in layers]
        narrow = [(layer.out, layer.down) for layer in layers]
        bytes_wide, bytes_narrow = sum(total(*w) for w in wide), sum(total(*n) for n in narrow)

        def cublas_wide(x: torch.Tensor = x, wide: list = wide) -> None:
            for matrices in wide:
                for matrix in matrices:
                    torch.nn.functional.linear(x, matrix.weight_OI, matrix.bias_O)

        timed(f"cuBLAS qkv (+ up), M={M}", cublas_wide, bytes_wide, len(layers))
        for tile in TILES if M == 1 else TILES[::3]:

            def wide_fused(tile: Tile = tile, x: torch.Tensor = x, wide: list = wide) -> None:
                for matrices in wide:
                    linear(tuple(Job(x, matrix) for matrix in matrices), tile)

            def narrow_fused(
                tile: Tile = tile, a: torch.Tensor = a, h: torch.Tensor = h, narrow: list = narrow
            ) -> None:
                for out, down in narrow:
                    if weights.parallel:
                        down_proj(((a, out), (h, down)), tile)
                    else:
                        down_proj(((a, out),), tile)
                        down_proj(((h, down),), tile)

            def gate_fused(tile: Tile = tile, x: torch.Tensor = x) -> None:
                for layer in layers:
                    gated_mlp(x, layer.gate, layer.up, weights.activation, tile)

            def head_fused(tile: Tile = tile, x: torch.Tensor = x) -> None:
                for _ in range(4):
                    head(x, weights.head, tile)

            variants = [("qkv (+ up)", wide_fused, bytes_wide, len(layers)), ("down_proj", narrow_fused, bytes_narrow, len(layers)),
                        ("head", head_fused, 4 * total(weights.head), 4)]  # fmt: skip
            if layers[0].gate is not None:
                variants.append(
                    ("gated_mlp", gate_fused, sum(total(y.gate, y.up) for y in layers), len(layers))
                )
            for name, function, nbytes, calls in variants:
                try:
                    timed(f"{name}, M={M}", function, nbytes, calls, tile=str(tile))
                except Exception as error:  # a tile that does not fit this device is a result too
                    say(f"{name} {tile}", error=str(error).splitlines()[0][:100])
        _small_kernels(weights, M, timed)


def _small_kernels(weights: Weights, M: int, timed: Callable[..., None]) -> None:
    """What moves few bytes and costs launches; and a whole pass."""
    device, context = weights.device, 8000
    tokens_1M = torch.ones(1, M, dtype=torch.int64, device=device)
    start = torch.tensor(context, device=device)
    ring = RingCache(weights, 1, RingSlots(4, 512, 127))
    full = FullCache(weights, 1, context + 64)
    full.reserve(context + 64)
    x_NE, turn = FUSED.embed(weights, tokens_1M, start, ring.far_limit)
    q = torch.randn(1, M, weights.heads, weights.head_dim, device=device, dtype=weights.dtype)
    k = torch.randn(1, M, weights.kv_heads, weights.head_dim, device=device, dtype=weights.dtype)
    layer, count = weights.layers[0], len(weights.layers)
    partial = torch.randn(5, M, x_NE.shape[1], device=device)
    seen = torch.zeros(1, weights.vocab_size, dtype=torch.bool, device=device)
    logits = torch.randn(M, weights.vocab_size, device=device)
    nbytes = full.nbytes()

    def each(function: Callable[[int], Any]) -> Callable[[], None]:
        return lambda: [function(index) for index in range(count)] and None

    timed(f"embed, M={M}", each(lambda _: FUSED.embed(weights, tokens_1M, start, 600)), 0, count)
    for cut in RING_CUTS:
        timed(
            f"attend ring, M={M}",
            each(lambda i, cut=cut: attend_ring(q, k, k, ring, i, start, turn, cut)),
            ring.nbytes(),
            count,
            cut=str(cut),
        )
    for block_cut in BLOCK_CUTS:
        timed(
            f"attend {context}, M={M}",
            each(lambda i, cut=block_cut: attend_blocks(q, k, k, full, i, start, turn, cut)),
            nbytes,
            count,
            cut=str(block_cut),
        )
    norms = (layer.attention_norm, layer.mlp_norm)
    timed(f"add_norm, M={M}", each(lambda _: FUSED.add_norm(x_NE, partial, (), norms)), 0, count)
    rules = Rules(1.2, (0,))
    timed(f"greedy, M={M}", each(lambda _: rules.pick(FUSED, logits, tokens_1M, seen)), 0, count)
    for name, cache in (("ring", ring), (f"{context}", full)):
        reader = CachedModel(weights, cache, FUSED)
        timed(f"whole pass, {name}, M={M}", lambda reader=reader: reader.read(tokens_1M, start), 0, 1)
