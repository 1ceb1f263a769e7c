"""A model in shards gives what the whole model gives: logits, tokens, and its caches' bytes counted and predicted."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.workers.engines.graph.tiny import cell, tokens
from tests.workers.engines.heard import Heard
from tests.workers.engines.ranks import in_ranks
from tests.workers.models.folders import save
from workers.cell import ModelRef
from workers.engines import open_session
from workers.models.load import load_model
from workers.models.shard import Shard
from workers.modes import Speculation

NEOX = {"model_type": "gpt_neox", "rotary_pct": 0.5, "num_attention_heads": 4}
LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "attention_bias": True,
}
ONE_KEY_HEAD = {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}
SHAPES = {
    "neox": NEOX,
    "neox-sequential": {**NEOX, "use_parallel_residual": False},
    "llama": LLAMA,
    "one key head, tied": ONE_KEY_HEAD,
    "packed matrices, odd vocabulary": {**LLAMA, "model_type": "phi3", "vocab_size": 97, "pad_token_id": 0},
    "normed": {**LLAMA, "model_type": "gemma3_text", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip
MODES = ("baseline", "streaming", "baseline+spec")
GENERATED = ("neox", "one key head, tied", "normed")
IDS = tokens(9)
NEW = 8


class Ran(NamedTuple):
    """`ids`, `cache_bytes`: by mode."""

    logits: torch.Tensor
    ids: dict[str, list[int]]
    cache_bytes: dict[str, int]
    weights_bytes: int


def run(name: str, shard: Shard | None, modes: tuple[str, ...]) -> Ran:
    ref = ModelRef(target=name, draft=name, dtype="float32")
    loaded = load_model(name, ref, torch.device("cpu"), 0, shard or Shard(0, 1))  # read or drawn in one part
    loaded = dataclasses.replace(loaded, shard=shard)
    ids, cache_bytes = {}, {}
    for mode in modes:
        heard = Heard()
        asked = cell(mode, model=ref, speculation=Speculation(gamma=2) if mode.endswith("spec") else None)
        session = open_session(asked, loaded, loaded if asked.mode_spec.decoder.needs_draft else None)
        ids[mode] = session.generate(IDS, NEW, heard).ids_BT[0].tolist()
        cache_bytes[mode] = heard.kv_bytes[-1]
    logits = open_session(cell("baseline", model=ref), loaded, None).logits(IDS[0])
    return Ran(logits, ids, cache_bytes, loaded.weights_bytes)


def run_all(shard: Shard | None, names: dict[str, str]) -> dict[str, Ran]:
    return {shape: run(name, shard, MODES if shape in GENERATED else ()) for shape, name in names.items()}


def run_shard(index: int, count: int, names: dict[str, str]) -> dict[str, Ran]:
    return run_all(Shard(index, count), names)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each shape in a folder of its own; one of them drawn, not read."""
    base = tmp_path_factory.mktemp("shards")
    found = {}
    for index, (shape, fields) in enumerate(SHAPES.items()):
        changes: dict[str, Any] = {"vocab_size": 100, "hidden_size": 48, "initializer_range": 0.3} | fields
        found[shape] = str(save(base / str(index), torch.float32, **changes))
    found["drawn"] = f"random:{Path(found['llama'])}"
    return found


@pytest.fixture(scope="module")
def whole(names: dict[str, str]) -> dict[str, Ran]:
    return run_all(None, names)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_give_what_the_whole_gives(count: int, names: dict[str, str], whole: dict[str, Ran]) -> None:
    found = in_ranks(count, run_shard, names)
    for shape, alone in whole.items():
        for each in (rank[shape] for rank in found):
            torch.testing.assert_close(each.logits, alone.logits, atol=1e-5, rtol=1e-5)
            assert torch.equal(each.logits, found[0][shape].logits), shape
            assert each.ids == alone.ids, shape
            assert each.weights_bytes < alone.weights_bytes, shape
