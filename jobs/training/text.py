"""The text of the pocket pair: CPython's documentation topics and its standard library's docstrings (PSF licence)."""

import ast
import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workers.text import builtin

END = "<|endoftext|>"


@dataclass(frozen=True)
class Corpus:
    """Documents by split. Validation has two parts, since topics and docstrings differ in kind."""

    python: str
    train: list[str]
    validation_topics: list[str]
    validation_docstrings: list[str]
    topic_names: list[str]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(vars(self)).encode()).hexdigest()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)))


def read(path: Path) -> Corpus:
    return Corpus(**json.loads(path.read_text()))


def collect() -> Corpus:
    """From the running Python: topics split by name, as the builtin corpus splits them, and modules by path.

    Topics quote one another and docstrings are copied, so no held-out paragraph is trained on, wherever it stands.
    """
    train = [text for name, text in sorted(topics.items()) if not builtin.held_out(name)]
    held_out: list[str] = []
    for module, text in _docstrings():
        (held_out if builtin.held_out(module) else train).append(text)
    held_out_topics = builtin.held_out_documents()
    unseen = {
        builtin.fingerprint(part) for text in held_out_topics + held_out for part in builtin.paragraphs(text)
    }
    kept = ([p for p in builtin.paragraphs(text) if builtin.fingerprint(p) not in unseen] for text in train)
    return Corpus(
        python=platform.python_version(),
        train=["\n\n".join(parts) for parts in kept if parts],
        validation_topics=held_out_topics,
        validation_docstrings=held_out,
        topic_names=sorted(name for name in topics if builtin.held_out(name)),
    )


def train_tokenizer(documents: list[str], entries: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text round-trips. Entry 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def _docstrings() -> Iterator[tuple[str, str]]:
    """(module path, its docstrings in source order), each docstring once, for the modules that have any."""
    root = Path(sysconfig.get_path("stdlib"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        if module.startswith(("site-packages/", "dist-packages/", "pydoc_data/")):
            continue
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError):  # the test suite holds files that are wrong on purpose
            continue
        owners = sorted(
            (n for n in nodes if isinstance(n, documented)), key=lambda n: getattr(n, "lineno", 0)
        )
        fresh = [text for n in owners if (text := ast.get_docstring(n)) and text not in seen]
        seen.update(fresh)
        if fresh:
            yield module, "\n\n".join(fresh)
