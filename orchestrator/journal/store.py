"""Where a run folder lives: a local folder or an object store. Whole files only, written all or not at all.

Names are relative to the folder, with `/`; nothing outside the folder is ever written.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.journal.errors import StoreError, StoreFull
from orchestrator.journal.lock import FileLock, Lock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".tmp"


class Store(Protocol):
    url: str
    """As a person would write it."""

    def names(self, folder: str) -> list[str]:
        """Files directly inside `folder` (`.` = the run folder), sorted; [] where there is no such folder."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError, `StoreError`."""

    def write(self, name: str, data: bytes) -> None:
        """Durable on return, whole or not there at all. Raises `StoreFull`, `StoreError`."""

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
            with self._told(folder, may_be_absent=True), os.scandir(self._path(folder)) as entries:
                return sorted(
                    entry.name for entry in entries if _is_file(entry) and not entry.name.endswith(_TEMPORARY)
                )
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        with self._told(name, may_be_absent=True):
            return self._path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
        with self._told(name):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
                _sync_folder(path.parent)
            except OSError:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def adopt(self, name: str, path: Path) -> None:
        target = self._path(name)
        with self._told(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def move(self, name: str, target: str) -> None:
        self.adopt(target, self._path(name))

    def remove(self, name: str) -> None:
        with self._told(name):
            self._path(name).unlink(missing_ok=True)

    @contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        yield self._path(folder)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with self._told("."):
            self._root.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(prefix=".scratch-", dir=self._root)
        with scratch as folder:
            yield Path(folder)

    def lock(self) -> Lock:
        with self._told("."):
            return FileLock(self._root / ".lock")

    def clear_leftovers(self, folder: str) -> None:
        for path in self._path(folder).glob(f".*{_TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / inside(name)

    @contextmanager
    def _told(self, name: str, *, may_be_absent: bool = False) -> Iterator[None]:
        """What the operating system refuses, as one line. `may_be_absent`: FileNotFoundError is an answer."""
        try:
            yield
        except OSError as error:
            if may_be_absent and isinstance(error, FileNotFoundError):
                raise
            where = f"{self.url}: {error.strerror or error}" + ("" if name == "." else f" ({name})")
            if error.errno in FULL:
                raise StoreFull(f"{where}: make room") from error
            raise StoreError(f"{where}: give a folder that can be read and written") from error


def inside(name: str) -> str:
    """`name`, if it names something inside the run folder. Raises `ValueError`."""
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise ValueError(f"{name!r} is not a name inside the run folder")
    return name


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads nowhere, or round in a circle
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
