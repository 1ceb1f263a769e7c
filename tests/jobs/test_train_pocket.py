"""The pocket pair's training: what it reads, what it holds out, and that its one command makes a loadable pair."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.training import text, train_pocket
from workers.cell import ModelRef
from workers.models.load import load_model, load_tokenizer
from workers.text import builtin


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small standard library: 40 modules, one of which repeats a paragraph of another, and broken ones."""
    root = tmp_path_factory.mktemp("stdlib")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "foreign.py").write_text('"""Not of the standard library."""')
    (root / "wrong.py").write_text("def f(:\n")
    for index in range(40):
        quoted = f"Paragraph of module {(index + 1) % 40} that another module quotes."
        (root / f"module{index}.py").write_text(
            f'"""Paragraph of module {index} that another module quotes.\n\n{quoted}"""\n'
            f'class C:\n    def f(self):\n        """Method {index}."""\n'
        )
    return root


@pytest.fixture
def corpus(library: Path, monkeypatch: pytest.MonkeyPatch) -> text.Corpus:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    return text.collect()


def test_nothing_held_out_is_trained_on(corpus: text.Corpus) -> None:
    held_out = corpus.validation_topics + corpus.validation_docstrings
    unseen = {builtin.fingerprint(part) for document in held_out for part in builtin.paragraphs(document)}
    trained = {
        builtin.fingerprint(part) for document in corpus.train for part in builtin.paragraphs(document)
    }
    assert not unseen & trained
    assert corpus.validation_docstrings
    assert any("Method 1." in document for document in corpus.train)
    assert not any("Not of the standard library" in document for document in corpus.train + held_out)


def test_the_split_follows_the_name_alone(corpus: text.Corpus) -> None:
    for index in range(40):
        held_out = any(f"Method {index}." in document for document in corpus.validation_docstrings)
        assert held_out == builtin.held_out(f"module{index}.py")
    assert corpus.validation_topics == builtin.held_out_documents()


def test_a_corpus_file_holds_the_same_corpus(corpus: text.Corpus, tmp_path: Path) -> None:
    corpus.write(tmp_path / "corpus.json")
    assert text.read(tmp_path / "corpus.json") == corpus


def test_acceptance_counts_agreement() -> None:
    torch.manual_seed(0)
    shape = {**train_pocket.DRAFT, "hidden_size": 16, "num_hidden_layers": 1}
    one, other = (train_pocket.build(shape, 0.0).eval() for _ in range(2))
    ids = torch.randint(1, 2048, (1024,))
    assert train_pocket.acceptance(one, one, ids, prompts=2, new_tokens=32) == 1.0
    assert train_pocket.acceptance(one, other, ids, prompts=2, new_tokens=12) < 0.5


def test_one_command_makes_the_pair(
    corpus: text.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real command, on a context and shapes cut down to seconds."""
    corpus = replace(corpus, train=corpus.train[-8:], validation_topics=[corpus.validation_topics[0][:4000]])
    corpus.write(tmp_path / "corpus.json")
    monkeypatch.setattr(train_pocket, "BATCH", 4)
    monkeypatch.setattr(train_pocket, "VOCABULARY", 300)
    monkeypatch.setattr(train_pocket, "CONTEXT", 32)
    monkeypatch.setattr(train_pocket, "TARGET", {**train_pocket.DRAFT, "hidden_size": 32})
    monkeypatch.setattr(
        train_pocket, "DRAFT", {**train_pocket.DRAFT, "hidden_size": 16, "num_hidden_layers": 1}
    )
    monkeypatch.setattr(train_pocket, "acceptance", lambda target, draft, held_out: 0.5)
    arguments = ["--corpus", str(tmp_path / "corpus.json"), "--out", str(tmp_path), "--steps", "60"]
    monkeypatch.setattr(sys, "argv", ["train_pocket", *arguments])
    train_pocket.main()
    losses = [
        float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step")
    ]
    assert losses[1] < losses[0]
    ref = ModelRef(target="")
    for name in ("pocket", "pocket-draft"):
        loaded = load_model(str(tmp_path / name), ref, torch.device("cpu"))
        assert loaded.model.config.hidden_dropout == 0.0
        assert loaded.eos_ids == {load_tokenizer(str(tmp_path / name), ref).eos_token_id}
        assert corpus.digest() in (tmp_path / name / "README.md").read_text()


def test_where_to_write_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_pocket"])
    with pytest.raises(SystemExit) as ended:
        train_pocket.main()
    assert ended.value.code == 2
