"""A file that a query is streamed into. It tells a file that cannot be written from a journal that cannot be read: a query
does both at a time, and Polars names neither.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class WriteFailed(Exception):
    """The file cannot be written. The text is the operating system's reason; `cause` is its error."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.cause = cause


@contextmanager
def writing() -> Iterator[None]:
    """What is done in the block only writes: its `OSError` is a `WriteFailed`."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(error) from None


@contextmanager
def sink(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` to stream into. Raises `WriteFailed` where it cannot be written, and what reading raises as it is."""
    with writing():
        file = path.open("wb", buffering=0)
    watched = _Watched(file)
    try:
        with file:
            yield cast("IO[bytes]", watched)
    except Exception as error:
        if watched.failure is not None:
            raise WriteFailed(watched.failure) from error
        raise


class _Watched(io.RawIOBase):
    """Keeps the error of a write: what comes back through Polars has another type."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data)
        written = 0
        try:
            while written < view.nbytes:
                written += self._file.write(view[written:])
        except OSError as error:
            self.failure = error
            raise
        return written
