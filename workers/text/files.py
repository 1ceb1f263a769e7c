"""Texts in files here: lines of a .txt, records of a .jsonl or .parquet with a field `text`, read row by row.

A path is a path, whatever characters are in it.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from workers.models import LoadError
from workers.models.weight_files import refuse_pointer
from workers.text import CorpusError

#: The kinds of file that are read.
SUFFIXES = (".txt", ".jsonl", ".parquet")
_ROWS = 1024


@dataclass(slots=True)
class Skipped:
    """Rows without a text, counted from 1: `text` is absent, null or empty."""

    count: int = 0
    first: int | None = None
    reasons: set[str] = field(default_factory=set)

    def note(self, row: int, reason: str) -> None:
        self.count += 1
        self.first = self.first or row
        self.reasons.add(reason)

    def __str__(self) -> str:
        if not self.count:
            return ""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        return f"{rows} skipped ({', '.join(sorted(self.reasons))}), row {self.first} the first"


def texts(rows: Iterator[Any], skipped: Skipped, fields: list[str] | None = None) -> Iterator[str]:
    """The texts of rows {"text": ...}; those without one are noted. `fields`: of the rows, where known.

    Raises `CorpusError` (without the corpus's name) for a row of another kind, and where no row has the field.
    """
    seen = found = 0
    for seen, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise CorpusError(f'row {seen} is {json.dumps(row)[:40]}, not a record {{"text": ...}}')
        text = row.get("text")
        if text is not None and not isinstance(text, str):
            raise CorpusError(f"row {seen}: `text` is {str(text)[:40]!r}, not a text")
        if text and not _is_unicode(text):
            raise CorpusError(
                f"row {seen}: `text` has half of a surrogate pair in it, which is no character; remove it"
            )
        if text:
            found += 1
            yield text
        else:
            skipped.note(
                seen, "no `text`" if "text" not in row else "`text` is null" if text is None else "empty"
            )
            fields = fields or list(row)
    if seen and not found:
        told = f"; its fields are {', '.join(fields)}" if fields and "text" not in fields else ""
        raise CorpusError(
            f"none of its {seen:,} rows has a text in a field `text`{told}; rename the field that has it"
        )


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file (UTF-8), without their ends. Raises `CorpusError` (without the corpus's name)."""
    with _utf8(path) as file:
        for line in file:
            yield line.removesuffix("\n")


def read_records(path: Path, skipped: Skipped) -> Iterator[str]:
    """Texts of a .jsonl or .parquet file. Raises `CorpusError` (without the corpus's name)."""
    if path.suffix == ".parquet":
        yield from _parquet(path, skipped)
    else:
        yield from texts(_json_lines(path), skipped)


def look_through(path: Path, most_rows: int) -> Skipped:
    """The rows without a text up to the row with the `most_rows`-th one. Lines of a .txt file are never skipped.

    Raises `CorpusError` (without the corpus's name) for what is wrong in them, and where there is no text at all.
    """
    refuse_lfs(path)
    skipped = Skipped()
    rows = read_lines(path) if path.suffix == ".txt" else read_records(path, skipped)
    found = sum(bool(row) for row in itertools.islice(rows, most_rows))
    if not found:
        raise CorpusError("it has no text")
    return skipped


def refuse_lfs(path: Path) -> None:
    """Raises `CorpusError` (without the corpus's name) where the file is a Git LFS pointer."""
    try:
        refuse_pointer("", path)
    except LoadError as error:
        raise CorpusError(str(error).removeprefix(": ")) from None


def _json_lines(path: Path) -> Iterator[Any]:
    with _utf8(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise CorpusError(f"line {number} is not JSON ({error}); one record a line") from None


@contextmanager
def _utf8(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CorpusError(f"it is not UTF-8 (a byte 0x{byte:02x} in it); save it as UTF-8") from None


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _parquet(path: Path, skipped: Skipped) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        fields = file.schema_arrow.names
        columns = ["text"] if "text" in fields else []

        def rows() -> Iterator[Any]:
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield from batch.to_pylist() if columns else ({} for _ in range(batch.num_rows))

        yield from texts(rows(), skipped, fields)
