"""One token behind many, over latents: transformers, which expands them, beside the graph engine, which does not, on one GPU.

    python -m tests.benchmarks.latents [--model random:deepseek-v2-lite] [--layers 4] [--tokens 8192,32768,131072]

The first layers of a model. Bytes at the peak of a step above what stays, and by how many more transformers needs for each
cached token; microseconds of a step of the graph engine, whole and for each split of the attention.
"""

import argparse
import json
from typing import Any

import torch
from transformers import AutoConfig, DynamicCache

from tests.benchmarks.device_time import bandwidth, graph_time, kv_bytes, weight_bytes
from workers.cell import Cell, ModelRef
from workers.engines.graph import decode
from workers.engines.graph.families import describe
from workers.engines.graph.kernels import FUSED, attend_latents_tiles
from workers.engines.graph.kernels.attend_latents_tiles import CUT, LatentSplit
from workers.engines.graph.model import CachedModel
from workers.engines.graph.policies import full
from workers.engines.graph.state import Rules, new_state
from workers.engines.graph.weights import Weights
from workers.models.build import from_config
from workers.models.shapes import shapes

SPLITS = (
    CUT,
    LatentSplit(16, 64, 4, 2),
    LatentSplit(16, 32, 4, 3),
    LatentSplit(16, 32, 8, 3),
    LatentSplit(16, 64, 8, 1),
)


def peak(work: Any) -> int:
    """Bytes above what is there before."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def expanded(model: Any, tokens: int) -> int:
    """The peak of transformers' step; the cache is put back to `tokens` tokens before each."""
    config = model.config
    shape = (1, 1, tokens)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        draws = (
            torch.randn(*shape, width, device="cuda", dtype=torch.bfloat16)
            for width in (config.kv_lora_rank, config.qk_rope_head_dim)
        )
        cache.update(*draws, layer)
    token = torch.ones(1, 1, dtype=torch.int64, device="cuda")

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    return peak(step)


def absorbed(weights: Weights, tokens: int) -> tuple[int, list[dict[str, Any]]]:
    """The peak of this engine's step, and its times."""
    cell = Cell(model=ModelRef(target="latents"), mode="baseline", engine="graph", prompt_tokens=1, length=1)
    cache = full(cell, weights, 1, tokens + 64)
    cache.reserve(tokens + 64)
    state = new_state(1, 2**12, 8, weights.vocab_size, 1.0, torch.device("cuda"))
    model, times = CachedModel(weights, cache, FUSED), []
    state.head.fill_(tokens)
    most = peak(lambda: decode.step(model, state, Rules(1.0, (0,))))
    for split in SPLITS:
        attend_latents_tiles.CUT = split
        state.head.fill_(tokens)
        try:
            took = graph_time(lambda: decode.step(model, state, Rules(1.0, (0,))), repeats=4).median
        except Exception as error:  # a split that the card has no room for: said, and the next one is asked
            times.append({"split": repr(split), "not_run": type(error).__name__})
            continue
        times.append({"split": repr(split), "us": round(took * 1e6, 1), "took": took})
    attend_latents_tiles.CUT = CUT
    return most, times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:deepseek-v2-lite")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", default="8192,32768,131072")
    args = parser.parse_args()
    content = dict(shapes()[args.model.removeprefix("random:")]["config"])
    config = AutoConfig.for_model(content.pop("model_type"), **{**content, "num_hidden_layers": args.layers})
    with torch.device("cuda"):
        model = from_config(config, torch.bfloat16, attn_implementation="sdpa").eval()
    weights, copy = describe(model), bandwidth(torch.device("cuda")).copy
    print(json.dumps({"device": torch.cuda.get_device_name(), "model": args.model, "copy": copy}), flush=True)
    with torch.inference_mode():
        for tokens in map(int, args.tokens.split(",")):
            mine, times = absorbed(weights, tokens)
            theirs = expanded(model, tokens)
            nbytes = weight_bytes(weights) + kv_bytes(weights, tokens)
            print(
                json.dumps(
                    {"tokens": tokens, "ours": mine, "transformers": theirs, "more_per_token": (theirs - mine) / tokens}
                ),
                flush=True,
            )  # fmt: skip
            for found in times:
                took = found.pop("took", None)
                found |= {} if took is None else {"of_copy": round(nbytes / copy / took, 3)}
                print(json.dumps({"tokens": tokens, **found}), flush=True)


if __name__ == "__main__":
    main()
