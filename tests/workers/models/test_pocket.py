"""The pair that ships: small enough, one tokenizer, GPT-NeoX, and its card says how it was made."""

from pathlib import Path

import pytest
import torch

from workers.cell import ModelRef
from workers.models.load import load_model, load_tokenizer, read_config
from workers.models.source import POCKETS, locate

REF = ModelRef(target="pocket", draft="pocket-draft")


def test_shapes() -> None:
    target, draft = read_config("pocket", REF), read_config("pocket-draft", REF)
    for config in (target, draft):
        assert config.model_type == "gpt_neox"
        assert config.use_parallel_residual
        assert config.rope_parameters["partial_rotary_factor"] == 0.25
        assert (config.vocab_size, config.max_position_embeddings) == (2048, 512)
    counts = [
        sum(p.numel() for p in load_model(name, REF, torch.device("cpu")).model.parameters())
        for name in ("pocket", "pocket-draft")
    ]
    assert 3e6 <= counts[0] <= 6e6
    assert 0.05 <= counts[1] / counts[0] <= 0.2


def test_together_at_most_12_mb() -> None:
    files = [path for name in ("pocket", "pocket-draft") for path in locate(name, REF, weights=True).weights]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_the_retrieving_model() -> None:
    """A third model, with the pair's tokenizer: all weights together stay small."""
    config = read_config("pocket-retrieve", REF)
    assert (config.model_type, config.vocab_size) == ("gpt_neox", 2048)
    assert config.max_position_embeddings >= 1024 + 64, "a prompt of 1,024 tokens and its answer"
    files = [path for name in POCKETS for path in locate(name, REF, weights=True).weights]
    assert sum(path.stat().st_size for path in files) <= 12e6
    tokenizer = Path(locate("pocket-retrieve", REF, weights=False).folder) / "tokenizer.json"
    assert (
        tokenizer.read_bytes()
        == (Path(locate("pocket", REF, weights=False).folder) / tokenizer.name).read_bytes()
    )
    card = tokenizer.with_name("README.md").read_text()
    assert all(word in card for word in ("CPython", "PSF", "held out", "steps", "seed", "Accuracy"))


def test_one_byte_level_tokenizer() -> None:
    target, draft = (load_tokenizer(name, REF) for name in ("pocket", "pocket-draft"))
    text = "def naïve(x):\n\treturn  'Ünïcødé ∑ 🎉'\r\n\x00"
    ids = target(text)["input_ids"]
    assert ids == draft(text)["input_ids"]
    assert target.decode(ids) == text
    assert len(target) == 2048
    assert target.eos_token_id == read_config("pocket", REF).eos_token_id


@pytest.mark.parametrize("name", ["pocket", "pocket-draft"])
def test_the_card_tells_data_licence_split_and_losses(name: str) -> None:
    card = (Path(locate(name, REF, weights=False).folder) / "README.md").read_text()
    for word in ("CPython", "PSF", "held out", "steps", "seed", "validation loss", "acceptance"):
        assert word in card
