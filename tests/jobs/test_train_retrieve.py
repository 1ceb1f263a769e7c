"""The training of the retrieving model: what its lessons are, and that its one command makes a loadable model."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from jobs.training import train_retrieve
from jobs.training.retrieval_text import LengthStage, Lessons
from workers.cell import ModelRef
from workers.models.load import load_model, load_tokenizer


def test_a_lesson_asks_for_what_it_has_said_and_weighs_the_answers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(train_retrieve.TOKENIZER)
    lessons = Lessons(tokenizer, [7] * 2000, steps=4, tokens=4 * 96, seed=0)
    ids_BT, weights_BT = lessons[1]
    assert torch.equal(ids_BT, lessons[1][0])
    assert ids_BT.shape == weights_BT.shape == (4, 97)
    asked = [row for row in range(4) if (weights_BT[row] == 1).any()]
    assert asked
    for row in asked:
        text = str(tokenizer.decode(ids_BT[row]))
        answers = str(tokenizer.decode(ids_BT[row][weights_BT[row] == 1])).split(".")
        for answer in filter(None, map(str.strip, answers)):
            assert text.count(answer) >= 2, "said, and asked for"
        assert text.endswith(answers[-2] + ".")


def test_one_command_makes_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real command, cut down to seconds."""
    monkeypatch.setattr(train_retrieve, "LENGTHS", (90,))
    monkeypatch.setattr(train_retrieve, "TASKS", ("single",))
    monkeypatch.setattr(train_retrieve, "SAMPLES", 1)
    monkeypatch.setattr("jobs.training.retrieval_text.STAGES", (LengthStage(1.0, 96),))
    monkeypatch.setattr(train_retrieve, "LONGEST", 100)
    monkeypatch.setattr("jobs.training.retrieval_text.NUMBERS", range(10_000, 10_100))
    arguments = ["--steps", "3", "--hidden", "16", "--layers", "1", "--tokens", "400", "--loaders", "0"]
    monkeypatch.setattr(sys, "argv", ["train_retrieve", "--out", str(tmp_path), *arguments])
    train_retrieve.main()
    name, ref = str(tmp_path / "pocket-retrieve"), ModelRef(target="")
    assert load_model(name, ref, torch.device("cpu")).eos_ids == {load_tokenizer(name, ref).eos_token_id}
    assert "| single | 90 |" in (tmp_path / "pocket-retrieve" / "README.md").read_text()
