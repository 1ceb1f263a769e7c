"""Other ways to decode one sequence, beside the graph engine, in one run on one device.

    python -m tests.benchmarks.peers [--model random:llama-3.1-8b] [--peers ours,cublas,eager,static,continuous,gpt-fast]
                                     [--gpt-fast FOLDER --gpt-fast-name llama-3.1-8b]

ours: this engine over full caches. cublas: all matrices by cuBLAS in one CUDA graph, nothing else: what plain kernels
come to. eager, static: transformers' `generate` with a growing cache, and with a static cache and torch.compile. continuous:
transformers' continuous batching with one request. gpt-fast: a clone of github.com/meta-pytorch/gpt-fast, compiled as it
compiles itself. Weights are random. Tokens per second, and the weights' bytes over the bandwidth of a copy, of the best
read and of the datasheet. A peer that does not run here is a row that says why.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from tests.benchmarks.device_time import Bandwidth, bandwidth, graph_time, kv_bytes, matrices, weight_bytes
from workers.cell import Cell, ModelRef
from workers.engines.graph import decode
from workers.engines.graph.families import describe
from workers.engines.graph.kernels import FUSED
from workers.engines.graph.model import CachedModel
from workers.engines.graph.policies import full
from workers.engines.graph.state import Rules, new_state
from workers.models.load import LoadedModel, load_model

PEERS = ("ours", "cublas", "eager", "static", "continuous", "gpt-fast")


@dataclass
class PeerSetting:
    """`tokens` are decoded behind a prompt of `prompt`; the time of the first `uncounted` does not count."""

    loaded: LoadedModel
    device: torch.device
    prompt: int
    tokens: int
    uncounted: int
    gpt_fast: Path | None
    gpt_fast_name: str

    @property
    def context(self) -> int:
        """Tokens in the cache, half way."""
        return self.prompt + self.tokens // 2

    def ids(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(1, 30_000, (1, self.prompt), generator=generator).to(self.device)


def ours(setting: PeerSetting) -> float:
    weights = describe(setting.loaded.model)
    most = setting.context + 192
    cell = Cell(
        model=ModelRef(target="peers"), mode="baseline", engine="graph",
        prompt_tokens=setting.prompt, length=setting.tokens,
    )  # fmt: skip
    cache = full(cell, weights, 1, most)
    cache.reserve(most)
    state = new_state(1, 2**12, 8, weights.vocab_size, 1.0, setting.device)
    state.head.fill_(setting.context)
    model = CachedModel(weights, cache, FUSED)
    return graph_time(lambda: decode.step(model, state, Rules(1.0, (0,)))).median


def cublas(setting: PeerSetting) -> float:
    found = matrices(describe(setting.loaded.model))
    x = {matrix.shape[1]: matrix.new_ones(1, matrix.shape[1]) for matrix in found}
    return graph_time(
        lambda: [torch.nn.functional.linear(x[matrix.shape[1]], matrix) for matrix in found]
    ).median


class Stopwatch(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def generate(setting: PeerSetting, **options: Any) -> float:
    """Seconds per token of transformers' `generate`; the second of two runs, the first one compiles."""
    for _ in range(2):
        stopwatch = Stopwatch()
        setting.loaded.model.generate(
            setting.ids(), max_new_tokens=setting.tokens, min_new_tokens=setting.tokens, do_sample=False,
            pad_token_id=0, stopping_criteria=StoppingCriteriaList([stopwatch]), **options,
        )  # fmt: skip
        torch.cuda.synchronize()
        end = time.perf_counter()
    return (end - stopwatch.times[setting.uncounted]) / (len(stopwatch.times) - 1 - setting.uncounted)


def continuous(setting: PeerSetting) -> float:
    """The difference between a long and a short request."""
    took = []
    for tokens in (setting.uncounted, setting.uncounted, setting.tokens):
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        started = time.perf_counter()
        outputs = setting.loaded.model.generate_batch(
            [setting.ids()[0].tolist()], generation_config=config, progress_bar=False
        )
        torch.cuda.synchronize()
        if [len(output.generated_tokens) for output in outputs.values()] != [tokens]:
            raise RuntimeError("its request failed")
        took.append(time.perf_counter() - started)
    return (took[2] - took[1]) / (setting.tokens - setting.uncounted)


def gpt_fast(setting: PeerSetting) -> float:
    """Its own `decode_n_tokens`, compiled as its `main` does."""
    if setting.gpt_fast is None:
        raise ValueError("no folder: --gpt-fast")
    sys.path.insert(0, str(setting.gpt_fast))
    model_module, generate_module = importlib.import_module("model"), importlib.import_module("generate")
    with torch.device(setting.device):
        model = model_module.Transformer.from_name(setting.gpt_fast_name).to(torch.bfloat16).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.02)
        model.setup_caches(max_batch_size=1, max_seq_length=setting.prompt + 2 * setting.tokens)
    if setting.device.type == "cuda":
        compiled = torch.compile(generate_module.decode_one_token, mode="reduce-overhead", fullgraph=True)
        generate_module.decode_one_token = compiled
    took = 0.0
    for _ in range(2):
        token = torch.ones(1, 1, dtype=torch.int, device=setting.device)
        position = torch.tensor([setting.prompt], dtype=torch.int, device=setting.device)
        started = time.perf_counter()
        generate_module.decode_n_tokens(model, token, position, setting.tokens, temperature=0.0, top_k=1)
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        took = (time.perf_counter() - started) / setting.tokens
    return took


RUN: dict[str, Callable[[PeerSetting], float]] = {
    "ours": ours,
    "cublas": cublas,
    "eager": generate,
    "static": lambda setting: generate(setting, cache_implementation="static"),
    "continuous": continuous,
    "gpt-fast": gpt_fast,
}


def row(setting: PeerSetting, peer: str, measured: Bandwidth) -> dict[str, Any]:
    try:
        took = RUN[peer](setting)
    except Exception as error:  # a peer of another version, or none: said, and the next one is asked
        return {"peer": peer, "not_run": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    weights = describe(setting.loaded.model)
    nbytes, kv = weight_bytes(weights), 0 if peer == "cublas" else kv_bytes(weights, setting.context)
    values: dict[str, Any] = {"peer": peer, "tokens_per_s": round(1 / took, 1), "us": round(took * 1e6, 1)}
    for roof, of in measured._asdict().items():
        if of is not None:
            values[f"weights_over_{roof}"] = round(nbytes / of / took, 4)
            values[f"all_over_{roof}"] = round((nbytes + kv) / of / took, 4)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:llama-3.1-8b")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument(
        "--asked", default="", help="bytes of each row that kernels ask for, one after the other"
    )
    parser.add_argument("--gpt-fast", type=Path, help="a clone of its repository")
    parser.add_argument("--gpt-fast-name", default="llama-3.1-8b", help="its name of the model's shape")
    args = parser.parse_args()
    device = torch.device("cuda")
    measured = bandwidth(device)
    loaded = load_model(args.model, ModelRef(target=args.model), device)
    setting = PeerSetting(loaded, device, args.prompt, args.tokens, 32, args.gpt_fast, args.gpt_fast_name)
    print(
        json.dumps({"device": torch.cuda.get_device_name(), "model": args.model, **measured._asdict()}),
        flush=True,
    )
    with torch.inference_mode():
        for peer in args.peers.split(","):
            print(json.dumps(row(setting, peer, measured)), flush=True)


if __name__ == "__main__":
    main()
