"""From a corpus's name to its documents.

builtin                        CPython's documentation topics
FILE.txt, .jsonl, .parquet     a file here; records have a field `text`
wikitext-2, pg-19              by name, from the hub
ID[:CONFIG[:SPLIT]]            any `datasets` id with a column `text`
"""

import functools
import hashlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.models import hub
from workers.text import CorpusError, CorpusUnavailable, builtin
from workers.text.files import SUFFIXES, Skipped, read_lines, read_records, refuse_lfs, texts

_NAMED = {
    "wikitext-2": "Salesforce/wikitext:wikitext-2-raw-v1:test",
    "pg-19": "emozilla/pg19::test",
}
#: Packages whose exceptions are the network's.
_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "huggingface_hub")
#: Lines are joined to pieces of about this many characters before they are tokenised.
_PIECE = 65_536


@dataclass(frozen=True, slots=True)
class Source:
    """`identity`: equal for equal text. `lines`: whether rows are lines of one running text, not documents."""

    identity: str
    dataset: str | None = None  # of `datasets`
    config: str | None = None
    split: str = "train"
    file: Path | None = None
    lines: bool = False


def resolve(corpus: str) -> Source:
    """Which text `corpus` names; reads none of it. Raises `CorpusError`."""
    if corpus == "builtin":
        return Source(f"builtin-{_builtin_digest()}")
    path = Path(corpus).expanduser()
    if path.suffix in SUFFIXES or path.is_absolute() or path.is_file():
        if not path.is_file():
            raise CorpusUnavailable(
                f"corpus {corpus}: no such file on {socket.gethostname()}; name a .txt, .jsonl or .parquet file that every "
                "node has, a dataset of the hub, or builtin"
            )
        if path.suffix not in SUFFIXES:
            raise CorpusError(
                f"corpus {corpus}: {path.suffix or 'no suffix'} is not read; use .txt, .jsonl or .parquet"
            )
        stat = path.stat()
        identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return Source(identity, file=path, lines=path.suffix == ".txt")
    dataset, config, split, *rest = (*_NAMED.get(corpus, corpus).split(":"), "", "", "")[:4]
    if rest[0]:
        raise CorpusError(f"corpus {corpus}: write ID, ID:CONFIG or ID:CONFIG:SPLIT")
    split = split or "test"
    return Source(f"{dataset}:{config}:{split}", dataset, config or None, split, lines="wikitext" in dataset)


@functools.cache
def _builtin_digest() -> str:
    return hashlib.sha256("\x00".join(builtin.documents()).encode()).hexdigest()[:16]


def documents(corpus: str, source: Source, skipped: Skipped) -> Iterator[str]:
    """The text of `source`, in order, lazily. Rows without a text are noted in `skipped`. Raises `CorpusError`."""
    if source.file is None and source.dataset is None:
        yield from builtin.documents()
        return
    try:
        if source.file is not None:
            refuse_lfs(source.file)
            rows = read_lines(source.file) if source.lines else read_records(source.file, skipped)
        else:
            # Lines of one text may be empty: nothing is skipped there.
            rows = texts(_dataset(source), Skipped() if source.lines else skipped)
        yield from _joined(rows, source.file is not None) if source.lines else rows
    except CorpusError as error:
        raise CorpusError(f"corpus {corpus}: {error}") from None
    except Exception as error:  # `datasets` raises what its parsers and the hub raise, pyarrow its own
        reason = str(error) if isinstance(error, hub.HubError) else f"{type(error).__name__}: {error}"
        remedy = "" if source.file else "; offline, use builtin or a .txt, .jsonl or .parquet file"
        kind = CorpusUnavailable if _is_the_hubs(error) else CorpusError
        raise kind(f"corpus {corpus}: cannot be read: {' '.join(reason.split())[:400]}{remedy}") from error


def _is_the_hubs(error: Exception) -> bool:
    """Whether the hub or the way there is at fault, or a disk, and not what was asked for."""
    return isinstance(error, hub.HubError | OSError) or type(error).__module__.partition(".")[0] in _NETWORK


def _dataset(source: Source) -> Iterator[object]:
    import datasets  # half a second: not for those who only read the cache

    datasets.disable_progress_bars()
    offline = (
        datasets.config.HF_HUB_OFFLINE
    )  # then only what `datasets` itself has cached, which does not stream
    assert source.dataset is not None
    if not offline:
        hub.describe(source.dataset, "dataset")
    yield from datasets.load_dataset(source.dataset, source.config, split=source.split, streaming=not offline)


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
