"""Where a run folder lives: a local folder or an object store. Whole files only, written all or not at all.

Names are relative to the folder, with `/`; nothing outside the folder is ever written.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.journal.errors import StoreFull
from orchestrator.journal.lock import FileLock, Lock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".tmp"


class Store(Protocol):
    url: str
    """As a person would write it."""

    def names(self, folder: str) -> list[str]:
        """Files directly inside `folder` (`.` = the run folder), sorted; [] where there is no such folder."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Durable on return, whole or not there at all. Raises `StoreFull`."""

    def adopt(self, name: str, path: Path) -> None:
        """Make the local file `path`, which lies in a `scratch` folder, the file `name`."""

    def move(self, name: str, target: str) -> None: ...

    def remove(self, name: str) -> None:
        """Nothing happens where there is no such file."""

    def local(self, folder: str) -> AbstractContextManager[Path]:
        """`folder` as a local path to read from; a copy for the time being where the store is remote."""

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty local folder to prepare files in."""

    def lock(self) -> Lock:
        """Raises `FolderInUse`."""

    def clear_leftovers(self, folder: str) -> None:
        """Remove what a killed writer left half-written. Only the holder of the lock may call this."""


class LocalStore:
    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.url = str(root)

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._path(folder)) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_file() and not entry.name.endswith(_TEMPORARY)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in FULL:
                raise StoreFull(f"{self.url}: {error.strerror} while writing {name}") from error
            raise

    def adopt(self, name: str, path: Path) -> None:
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)

    def move(self, name: str, target: str) -> None:
        self.adopt(target, self._path(name))

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    @contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        yield self._path(folder)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=self._root) as folder:
            yield Path(folder)

    def lock(self) -> Lock:
        return FileLock(self._root / ".lock")

    def clear_leftovers(self, folder: str) -> None:
        for path in self._path(folder).glob(f".*{_TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / inside(name)


def inside(name: str) -> str:
    """`name`, if it names something inside the run folder. Raises `ValueError`."""
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise ValueError(f"{name!r} is not a name inside the run folder")
    return name


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
