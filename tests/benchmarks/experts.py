"""The launches of a layer of experts, at several tiles, on one GPU.

    python -m tests.benchmarks.experts [--shapes qwen3-30b-a3b,gpt-oss-20b]

One token, weights and choices at random, other experts in each call, so that no cache holds them. Microseconds of a call, and
the bytes of the chosen experts over the bandwidth of a copy. The first tile of each launch is the one in use.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from tests.benchmarks.device_time import bandwidth, graph_time
from workers.engines.graph.kernels.experts import down, gate_up, route, tiles_of
from workers.engines.graph.kernels.linear import Tile
from workers.engines.graph.kernels.residual import WIDTH, Residual
from workers.engines.graph.weights import Experts, Linear, Norm

#: hidden, intermediate, experts, chosen, inputs outermost
SHAPES = {"qwen3-30b-a3b": (2048, 768, 128, 8, False), "gpt-oss-20b": (2880, 2880, 32, 4, True)}
CALLS = 16


def tiles(used: Tile, outputs: tuple[int, ...]) -> Iterator[Tile]:
    yield used
    for rows, (depth, warps, stages) in itertools.product(
        outputs,
        ((64, 4, 4), (64, 4, 6), (64, 4, 8), (64, 8, 6), (128, 4, 3), (128, 4, 5), (128, 8, 4), (128, 8, 3)),
    ):
        yield replace(used, outputs=rows, depth=depth, warps=warps, stages=stages)


def drawn(E: int, inner: int, X: int, top: int, transposed: bool) -> Experts:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02

    if transposed:
        matrices = draw(X, E, 2 * inner).mT, draw(X, inner, E).mT
    else:
        matrices = draw(X, 2 * inner, E), draw(X, E, inner)
    return Experts(Linear(draw(X, E), None), top, *matrices, interleaved=transposed)


def measure(name: str, copy: float) -> None:
    shape = SHAPES[name]
    E, inner, X, top, _ = shape
    mixture = drawn(*shape)
    norm = Norm(torch.ones(E, device="cuda", dtype=torch.bfloat16), None, 1e-6, "rms")
    x_1E = torch.randn(1, E, device="cuda", dtype=torch.bfloat16)
    x = Residual(x_1E, torch.ones(1, 2, -(-E // WIDTH), device="cuda"))
    scores = [torch.randn(1, X, device="cuda", dtype=torch.bfloat16) for _ in range(CALLS)]
    fed_PI = torch.randn(top, inner, device="cuda", dtype=torch.bfloat16)

    def say(launch: str, nbytes: int, tile: Tile | None, call: Callable[[torch.Tensor], Any]) -> None:
        row: dict[str, Any] = {"shape": name, "launch": launch, "tile": repr(tile)}
        try:
            took = graph_time(lambda: [call(scores_1X) for scores_1X in scores]).median / CALLS
            row |= {"us": round(took * 1e6, 2), "of_copy": round(nbytes / copy / took, 3)}
        except Exception as error:  # a tile that the card has no room for: said, and the next one is asked
            row["not_run"] = type(error).__name__
        print(json.dumps(row), flush=True)

    up_tile, _ = tiles_of(mixture.gate_up_XOE)
    _, down_tile = tiles_of(mixture.down_XEI)
    say("router", X * E * 2, None, lambda scores_1X: route(x, norm, mixture))
    for tile in tiles(up_tile, (32, 64)):
        say("gate_up", 4 * top * inner * E, tile, lambda s, t=tile: gate_up(x, norm, mixture, "silu", s, t))
    for tile in tiles(down_tile, (WIDTH,)):
        say("down", 2 * top * inner * E, tile, lambda s, t=tile: down(x, mixture, s, fed_PI, t))

    def together(scores_1X: torch.Tensor) -> None:
        route(x, norm, mixture)
        down(x, mixture, scores_1X, gate_up(x, norm, mixture, "silu", scores_1X))

    say("all three", 6 * top * inner * E + X * E * 2, None, together)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    names = parser.parse_args().shapes.split(",")
    found = bandwidth(torch.device("cuda"))
    print(json.dumps({"device": torch.cuda.get_device_name(), **found._asdict()}), flush=True)
    with torch.inference_mode():
        for name in names:
            measure(name, found.copy)


if __name__ == "__main__":
    main()
