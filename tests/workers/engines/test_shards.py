"""A model in shards gives what the whole model gives, in both engines: logits, tokens, and caches of the bytes predicted."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from orchestrator.predict.memory import cache_bytes
from orchestrator.predict.shard import shape_of_shard
from tests.workers.engines.graph.tiny import cell, tokens
from tests.workers.engines.heard import Heard
from tests.workers.engines.ranks import in_ranks
from tests.workers.models.folders import save
from workers.cell import Cell, Engine, ModelRef
from workers.engines import open_session
from workers.engines.preflight import refuse_by_config
from workers.engines.session import ModeUnsupported
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
LATENT = {
    "model_type": "deepseek_v2",
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "first_k_dense_replace": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "neox": NEOX,
    "neox-sequential": {**NEOX, "use_parallel_residual": False},
    "llama": LLAMA,
    "one key head, tied": {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "packed matrices, odd vocabulary": {**LLAMA, "model_type": "phi3", "vocab_size": 97, "pad_token_id": 0},
    "normed": {**LLAMA, "model_type": "gemma3_text", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "latent": LATENT,
    "no plan": {"model_type": "gpt2", "n_embd": 48, "n_head": 4, "n_layer": 2},
}  # fmt: skip
DRAWN = "drawn"
RUN: dict[Engine, tuple[str, ...]] = {
    "graph": (*itertools.islice(SHAPES, 6), DRAWN),
    "eager": ("neox", "llama", "packed matrices, odd vocabulary", "normed", "latent", DRAWN),
}
#: In every mode; by more than two processes the first alone, which take turns on few cores.
GENERATED = {"graph": ("one key head, tied", "neox", "normed"), "eager": ("llama", "neox")}
MODES = ("baseline", "streaming", "baseline+spec")
IDS = tokens(9)
NEW = 8


class Ran(NamedTuple):
    """`ids`, `cache_bytes`: by mode, the latter after the last step."""

    logits: torch.Tensor
    ids: dict[str, list[int]]
    cache_bytes: dict[str, int]
    weights_bytes: int


def asked(name: str, engine: Engine, mode: str, **fields: Any) -> Cell:
    ref = ModelRef(target=name, draft=name, dtype="float32")
    speculation = Speculation(gamma=2) if mode.endswith("spec") else None
    return cell(mode, model=ref, engine=engine, speculation=speculation, length=NEW, **fields)


def run(name: str, engine: Engine, shard: Shard | None, modes: tuple[str, ...]) -> Ran:
    """`shard` None: the whole, one that is drawn as shards are."""
    ref = asked(name, engine, "baseline").model
    one_part = Shard(0, 1) if name.startswith("random:") else None
    loaded = load_model(name, ref, torch.device("cpu"), 0, shard or one_part)
    loaded = dataclasses.replace(loaded, shard=shard)
    ids, counted = {}, {}
    for mode in modes:
        heard = Heard()
        one = asked(name, engine, mode)
        session = open_session(one, loaded, loaded if one.mode_spec.decoder.needs_draft else None)
        ids[mode] = session.generate(IDS, NEW, heard).ids_BT[0].tolist()
        counted[mode] = heard.kv_bytes[-1]
    logits = open_session(asked(name, engine, "baseline"), loaded, None).logits(IDS[0])
    return Ran(logits, ids, counted, loaded.weights_bytes)


Found = dict[tuple[Engine, str], Ran]


def run_all(names: dict[str, str], index: int = 0, count: int = 1) -> Found:
    return {
        (engine, shape): run(
            names[shape],
            engine,
            Shard(index, count, engine) if count > 1 else None,
            MODES if shape in GENERATED[engine][: 3 if count < 4 else 1] else ("baseline",),
        )
        for engine, shapes in RUN.items()
        for shape in shapes
    }


def run_rank(index: int, count: int, names: dict[str, str]) -> Found:
    return run_all(names, index, count)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each shape in a folder of its own; one of them drawn, not read."""
    base = tmp_path_factory.mktemp("shards")
    found = {}
    for index, (shape, fields) in enumerate(SHAPES.items()):
        changes: dict[str, Any] = {"vocab_size": 100, "hidden_size": 48, "initializer_range": 0.3} | fields
        found[shape] = str(save(base / str(index), torch.float32, **changes))
    found[DRAWN] = f"random:{Path(found['llama'])}"
    return found


@pytest.fixture(scope="module")
def whole(names: dict[str, str]) -> Found:
    return run_all(names)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_give_what_the_whole_gives(count: int, names: dict[str, str], whole: Found) -> None:
    found = in_ranks(count, run_rank, names)
    for key, alone in whole.items():
        engine, shape = key
        told = shape_of_shard(names[shape], asked(names[shape], engine, "baseline").model, engine, count)
        for each in (rank[key] for rank in found):
            torch.testing.assert_close(each.logits, alone.logits, atol=1e-5, rtol=1e-5)
            assert torch.equal(each.logits, found[0][key].logits), key
            assert each.ids == {mode: alone.ids[mode] for mode in each.ids}, key
            for mode, counted in each.cache_bytes.items():
                one = asked(names[shape], engine, mode)
                models = 2 if one.mode_spec.decoder.needs_draft else 1
                if engine == "eager" and (models > 1 or told.windows[0] is not None):
                    continue  # what a draft has read by the end, the last round decides; a window is held for one token more
                assert counted == models * cache_bytes(one, told, len(IDS[0]) + NEW - 1), (key, mode)
        assert found[0][key].weights_bytes == told.weights_bytes("float32"), key


@pytest.mark.parametrize(
    ("shape", "engine", "count", "mode", "reason"),
    [
        ("llama", "graph", 3, "baseline", "8 heads do not divide by 3"),
        ("no plan", "graph", 2, "baseline", "does not run a gpt2"),
        ("random:mixtral-8x7b", "graph", 2, "baseline", "a mixture of experts is not cut"),
        ("random:olmo-2-7b", "graph", 2, "baseline", "over all heads together"),
        ("one key head, tied", "eager", 2, "baseline", "1 key heads do not divide by 2"),
        ("no plan", "eager", 2, "baseline", "no plan for gpt2"),
        ("llama", "eager", 2, "tova", "by all heads"),
    ],
)
def test_what_is_not_cut_is_refused(
    shape: str, engine: Engine, count: int, mode: str, reason: str, names: dict[str, str]
) -> None:
    with pytest.raises(ModeUnsupported, match=reason):
        refuse_by_config(asked(names.get(shape, shape), engine, mode, devices=count))
