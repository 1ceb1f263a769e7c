"""From a corpus's name to its documents.

builtin                        CPython's documentation topics
FILE.txt, .jsonl, .parquet     a file here; records have a field `text`
wikitext-2, pg-19              by name, from the hub
ID[:CONFIG[:SPLIT]]            any `datasets` id with a column `text`
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.models import hub
from workers.text import CorpusError, builtin

_NAMED = {
    "wikitext-2": "Salesforce/wikitext:wikitext-2-raw-v1:test",
    "pg-19": "emozilla/pg19::test",
}
_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
#: Lines are joined to pieces of about this many characters before they are tokenised.
_PIECE = 65_536


@dataclass(frozen=True, slots=True)
class Source:
    """`identity`: equal for equal text. `lines`: whether rows are lines of one running text, not documents."""

    identity: str
    loader: str | None  # of `datasets`; None = builtin
    config: str | None = None
    split: str = "train"
    file: str | None = None
    lines: bool = False


def resolve(corpus: str) -> Source:
    """Which text `corpus` names; reads none of it. Raises `CorpusError`."""
    if corpus == "builtin":
        return Source(f"builtin-{_builtin_digest()}", None)
    path = Path(corpus).expanduser()
    if path.suffix in _LOADERS or path.is_absolute() or path.is_file():
        if not path.is_file():
            raise CorpusError(
                f"corpus {corpus}: no such file; name an existing .txt, .jsonl or .parquet file, or builtin"
            )
        if path.suffix not in _LOADERS:
            raise CorpusError(
                f"corpus {corpus}: {path.suffix or 'no suffix'} is not read; use .txt, .jsonl or .parquet"
            )
        stat = path.stat()
        identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return Source(identity, _LOADERS[path.suffix], file=str(path), lines=path.suffix == ".txt")
    dataset, config, split, *rest = (*_NAMED.get(corpus, corpus).split(":"), "", "", "")[:4]
    if rest[0]:
        raise CorpusError(f"corpus {corpus}: write ID, ID:CONFIG or ID:CONFIG:SPLIT")
    split = split or "test"
    return Source(f"{dataset}:{config}:{split}", dataset, config or None, split, lines="wikitext" in dataset)


@functools.cache
def _builtin_digest() -> str:
    return hashlib.sha256("\x00".join(builtin.documents()).encode()).hexdigest()[:16]


def documents(corpus: str, source: Source) -> Iterator[str]:
    """The text of `source`, in order, lazily. Raises `CorpusError`."""
    if source.loader is None:
        yield from builtin.documents()
        return
    rows = _rows(corpus, source, source.loader)
    yield from _joined(rows, source.file is not None) if source.lines else rows


def _rows(corpus: str, source: Source, loader: str) -> Iterator[str]:
    import datasets  # half a second: not for those who only read the cache

    datasets.disable_progress_bars()
    offline = (
        datasets.config.HF_HUB_OFFLINE
    )  # then only what `datasets` itself has cached, which does not stream
    try:
        if source.file is None and not offline:
            hub.describe(loader, "dataset")
        rows = datasets.load_dataset(
            loader, source.config, split=source.split, data_files=source.file, streaming=not offline
        )
        for row in rows:
            yield row["text"]
    except KeyError:
        raise CorpusError(f"corpus {corpus}: its rows have no field `text`") from None
    except Exception as error:  # `datasets` raises what its parsers and the hub raise
        reason = str(error) if isinstance(error, hub.HubError) else f"{type(error).__name__}: {error}"
        remedy = "" if source.file else "; offline, use builtin or a .txt, .jsonl or .parquet file"
        raise CorpusError(
            f"corpus {corpus}: cannot be read: {' '.join(reason.split())[:400]}{remedy}"
        ) from error


def _joined(lines: Iterable[str], bare: bool) -> Iterator[str]:
    """Lines of one text as larger pieces. `bare`: without their newlines."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line + "\n" if bare else line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)
