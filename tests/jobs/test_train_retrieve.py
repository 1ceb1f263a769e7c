"""The training of the retrieving model: what its lessons are, and that its one command makes a loadable model."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from jobs.training import train_retrieve
from jobs.training.retrieval_text import LengthStage, Lessons
from workers.cell import ModelRef
from workers.models.load import load_model, load_tokenizer
from workers.retrieval.tasks import sample


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


@pytest.mark.parametrize("task", ["passkey", "single"])
def test_lessons_say_and_ask_in_the_words_of_the_tasks(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(train_retrieve.TOKENIZER)
    lessons = Lessons(tokenizer, [7] * 2000, steps=1, tokens=400 * 96, seed=0)
    taught = "".join(_without_names(str(tokenizer.decode(ids))) for ids in lessons[0][0])
    made = sample(task, 0, 0.5, 0)
    assert _without_names(made.needles[0].text) in taught
    assert _without_names(f"{made.question} {made.expected[0]}.") in taught


def _without_names(text: str) -> str:
    return re.sub(r"number of [a-z]+", "number of KEY", re.sub(r"\d{5}", "VALUE", text))


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
    card = (tmp_path / "pocket-retrieve" / "README.md").read_text()
    assert "| single | 90 |" in card
    assert "--hidden 16 --layers 1 --heads 4 --rate 0.002 --tokens 400 --steps 3`" in card
