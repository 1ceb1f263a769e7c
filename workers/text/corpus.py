"""Token ids of a corpus: tokenised once per node for each pair of corpus and tokenizer, then mapped."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from workers.cell import ModelRef
from workers.models.node_cache import build_once, built
from workers.models.tokenizer import load_tokenizer, tokenizer_key
from workers.text import CorpusError, builtin, sources
from workers.text.files import Skipped

__all__ = ["CorpusError", "KeptIds", "beginning", "decode", "held_out_tokens", "kept_ids", "token_ids"]

#: The smallest cached prefix of a corpus, in tokens; longer ones double.
_PREFIX = 2**20

#: Of what is kept: ids of another layout are another entry of the node's cache.
_LAYOUT = 3

_IDS, _SKIPPED = "ids.npy", "skipped.txt"


@dataclass(frozen=True, slots=True)
class KeptIds:
    """The first tokens of a corpus as this node keeps them, mapped: reading them takes no memory of a process.

    `ids_N`: int32, of the tokenizer's vocabulary: of a random model it is another's, and may be larger than its own.
    `skipped`: which rows of the corpus had no text, in words; empty where all had one.
    """

    corpus: str
    tokenizer_of: str
    ids_N: np.ndarray
    skipped: str = ""

    def cut(self, start: int, count: int) -> np.ndarray:
        """`count` ids from token `start` on, copied: int32 [count]. Raises `CorpusError`."""
        if len(self.ids_N) < start + count:
            raise CorpusError(
                f"corpus {self.corpus}: {len(self.ids_N):,} tokens for {self.tokenizer_of}, "
                f"{start + count:,} asked for{'; ' * bool(self.skipped)}{self.skipped}; name a longer corpus or ask "
                "for less"
            )
        return np.array(self.ids_N[start : start + count], dtype=np.int32)


def token_ids(corpus: str, tokenizer_of: str, ref: ModelRef, start: int, count: int) -> np.ndarray:
    """`count` ids from token `start` on: int32 [count], as the tokenizer of model `tokenizer_of` gives them.

    Token 0 is what the tokenizer puts before a text, where it puts anything (Llama's begin-of-text): models are trained
    to find it there, and it is their attention sink. Documents are separated by the tokenizer's end-of-text token,
    where it has one. A corpus is tokenised only as far as has been asked for (to the next power of two).
    Raises `CorpusError`, and `LoadError` for the tokenizer.
    """
    source = sources.resolve(corpus)
    capacity = _capacity(start + count)

    def build(folder: Path) -> None:
        skipped = Skipped()
        np.save(folder / _IDS, _tokenise(corpus, source, tokenizer_of, ref, capacity, skipped))
        (folder / _SKIPPED).write_text(str(skipped))

    folder = build_once(_key(source, tokenizer_of, ref, capacity), build)
    return _mapped(folder, corpus, tokenizer_of).cut(start, count)


def kept_ids(corpus: str, tokenizer_of: str, ref: ModelRef, end: int) -> KeptIds | None:
    """What `token_ids` would cut from, up to token `end`; None where it would have to tokenise first.

    Raises `CorpusError`, and `LoadError` for the tokenizer.
    """
    folder = built(_key(sources.resolve(corpus), tokenizer_of, ref, _capacity(end)))
    return None if folder is None else _mapped(folder, corpus, tokenizer_of)


def decode(runs: Sequence[Sequence[int]], tokenizer_of: str, ref: ModelRef) -> list[str]:
    """The text of each run of ids; a random model's ids beyond its stand-in tokenizer have none."""
    tokenizer = load_tokenizer(tokenizer_of, ref)
    return [str(tokenizer.decode(list(ids))) for ids in runs]


def held_out_tokens(tokenizer_of: str, ref: ModelRef) -> int:
    """How many tokens at the start of `builtin` the pocket pair was not trained on."""
    tokenizer = load_tokenizer(tokenizer_of, ref)
    documents = builtin.held_out_documents()
    special = len(beginning(tokenizer)) + len(documents) * (tokenizer.eos_token_id is not None)
    return special + sum(len(ids) for ids in _encode(tokenizer, documents))


def _capacity(end: int) -> int:
    return max(_PREFIX, 1 << (end - 1).bit_length())


def _key(source: sources.Source, tokenizer_of: str, ref: ModelRef, capacity: int) -> str:
    known_by = f"{source.identity}\n{tokenizer_key(tokenizer_of, ref)}\n{capacity}\n{_LAYOUT}"
    return f"tokens/{hashlib.sha256(known_by.encode()).hexdigest()[:24]}"


def _mapped(folder: Path, corpus: str, tokenizer_of: str) -> KeptIds:
    return KeptIds(
        corpus=corpus,
        tokenizer_of=tokenizer_of,
        ids_N=np.load(folder / _IDS, mmap_mode="r"),
        skipped=(folder / _SKIPPED).read_text(),
    )


def _tokenise(
    corpus: str, source: sources.Source, tokenizer_of: str, ref: ModelRef, capacity: int, skipped: Skipped
) -> np.ndarray:
    tokenizer = load_tokenizer(tokenizer_of, ref)
    separator = [] if source.lines or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = [np.array(beginning(tokenizer), dtype=np.int32)]
    total = len(parts[0])
    for ids in _encode(tokenizer, sources.documents(corpus, source, skipped)):
        parts.append(np.array(ids + separator, dtype=np.int32))
        total += len(parts[-1])
        if total >= capacity:
            break
    return np.concatenate(parts)[:capacity]


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text, and not what it may put behind one."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a", add_special_tokens=True)["input_ids"]
    for before in range(len(marked)):
        if bare and marked[before : before + len(bare)] == bare:
            return list(marked[:before])
    raise CorpusError(
        f"the tokenizer {tokenizer.name_or_path} encodes a text otherwise when it marks its beginning"
    )


def _encode(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Iterator[list[int]]:
    for text in documents:
        yield tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
