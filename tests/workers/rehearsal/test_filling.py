"""Caches that are filled without a forward, against the same passes behind a forward."""

import dataclasses
import json
from pathlib import Path

import pytest

from workers.cell import Cell, ModelRef
from workers.rehearsal.eager import EagerRehearsal
from workers.rehearsal.filling import Filling

CELL = Cell(
    model=ModelRef(target="random:pythia-14m"),
    mode="baseline",
    engine="eager",
    prompt_tokens=600,
    length=8,
    prefill_chunk=128,
)
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 512}
LAYERS = {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "qwen3": {},
    "gemma3_text": {"sliding_window": 96, "num_hidden_layers": 8},
    "phi3": {
        "pad_token_id": 0,
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    },
    "gpt_oss": {"sliding_window": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("kind", ["pythia", *CONFIGS])
def test_passes_do_not_depend_on_how_their_cache_was_filled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELL
    if kind in CONFIGS:
        config = {"model_type": kind, **SMALL, **LAYERS, **CONFIGS[kind]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        cell = dataclasses.replace(CELL, model=ModelRef(target=f"random:{tmp_path}"))
    rehearsal = EagerRehearsal(cell)
    rehearsal.chunk(64, 16)  # the forward that tells what others leave
    told = [rehearsal.chunk(at, 128) for at in (128, 640)], rehearsal.generation(500, read=True)

    def forget(self: Filling, *asked: object) -> None:
        self._left.clear()
        before(self, *asked)  # type: ignore[arg-type]

    before = Filling.fill
    monkeypatch.setattr(Filling, "fill", forget)
    fresh = EagerRehearsal(cell)
    fresh.chunk(64, 16)
    assert told == ([fresh.chunk(at, 128) for at in (128, 640)], fresh.generation(500, read=True))
