"""How long work takes on a GPU, what its memory can do, and how many bytes a token needs."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from workers.engines.graph.weights import Experts, Mlp, Weights

#: Bytes per second by the vendor's datasheet, by what a device's name contains.
DATASHEET = {"H200": 4.8e12, "H100 80GB HBM3": 3.35e12, "A100": 2.04e12}


class Bandwidth(NamedTuple):
    """Bytes per second. `copy`: read plus written. `read`: of a sum. `datasheet`: None where unknown."""

    copy: float
    read: float
    datasheet: float | None


class Took(NamedTuple):
    """Seconds of one call: the median of several rounds, and the slowest round less the fastest."""

    median: float
    spread: float


def graph_time(function: Callable[[], Any], repeats: int = 10, rounds: int = 5) -> Took:
    """Of one call, replayed from a CUDA graph."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    graph.replay()
    return event_time(graph.replay, repeats, rounds)


def event_time(function: Callable[[], Any], repeats: int = 1, rounds: int = 5) -> Took:
    """Of one call among `repeats` in a row, between two events."""
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / repeats)
    return Took(statistics.median(times), max(times) - min(times))


def bandwidth(device: torch.device) -> Bandwidth:
    """Over 2 GiB of random numbers: zeros draw less power."""
    source = torch.randn(2**29, device=device)
    sink = torch.empty_like(source)
    copy = event_time(lambda: sink.copy_(source), rounds=15)
    read = event_time(lambda: torch.sum(source), rounds=15)
    name = torch.cuda.get_device_name(device)
    datasheet = next((value for part, value in DATASHEET.items() if part in name), None)
    return Bandwidth(2 * source.nbytes / copy.median, source.nbytes / read.median, datasheet)


def matrices(weights: Weights) -> list[torch.Tensor]:
    """Every matrix that a token reads, in their order; the head last. Of experts, as many as a token chooses."""
    found = []
    for layer in weights.layers:
        found += [part.weight_OI for part in (*layer.qkv, layer.out)]
        if (latent := layer.attention.latent) is not None:
            found += [*latent.keys_HZD.contiguous(), *latent.values_HDZ]
            found += [] if latent.query_up is None else [latent.query_up[1].weight_OI]
        mlp: Mlp | Experts | None = layer.mlp
        if isinstance(mlp, Experts):
            found += [mlp.router.weight_OI, *mlp.gate_up_XOE[: mlp.top], *mlp.down_XEI[: mlp.top]]
            mlp = mlp.shared
        if mlp is not None:
            found += [part.weight_OI for part in (mlp.gate, mlp.up, mlp.down) if part is not None]
    return [*found, weights.head.weight_OI]


def weight_bytes(weights: Weights) -> int:
    return sum(matrix.nbytes for matrix in matrices(weights))


def kv_bytes(weights: Weights, tokens: int, batch: int = 1) -> int:
    """Keys and values of `tokens` tokens of `batch` sequences; of layers with a window, no more than that."""
    windows = (layer.attention.sliding_window for layer in weights.layers)
    seen = sum(tokens if window is None else min(tokens, window) for window in windows)
    return seen * weights.kv_heads * sum(weights.kept_dims) * weights.embedding_VE.element_size() * batch
