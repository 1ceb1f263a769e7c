"""A run folder in an object store (`s3://`, `gs://`, ... through fsspec), and what its errors mean to a person."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.journal.errors import StoreError, StoreFull
from orchestrator.journal.lock import LeaseLock, Lock
from orchestrator.journal.parts import lease_of
from orchestrator.journal.store import FULL, LocalStore, Store, inside
from workers.extras import for_store

#: Packages whose exceptions are the store's, not faults of this program.
_LIBRARIES = {
    *("botocore", "aiobotocore", "s3fs", "aiohttp", "fsspec"),
    *("gcsfs", "google", "azure", "adlfs"),
}
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOError", "LoginError", "DefaultCredentialsError", "RefreshError"),
}
#: S3 answers that are the credentials' fault though the key was found.
_BAD_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_CREDENTIALS_OF = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}
_ENDPOINT_OF = {"s3": "the network and AWS_ENDPOINT_URL"}
#: A driver that waits for its store notices nothing else: few attempts, each of few seconds.
_OPTIONS_OF: Mapping[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 2}}}}
_RETRIES = 2


def open_store(out: str | Path) -> Store:
    """A path, or a URL that fsspec knows (`s3://bucket/run`, `gs://bucket/run`; `file://` is a path)."""
    text = str(out)
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    scheme, separator, _ = text.partition("://")
    if separator and not scheme:
        raise StoreError(f"{text}: a URL begins with its kind of store, as s3:// does")
    return ObjectStore(text) if separator else LocalStore(Path(text))


class ObjectStore:
    """Any object store that fsspec supports. A put is atomic there: nothing is ever half-written.

    Every method raises `StoreError` where the store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        options = _OPTIONS_OF.get(self._scheme, {})
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError as error:
            raise StoreError(
                f"{url}: {self._scheme}:// needs another package: {for_store(self._scheme)} ({error})"
            ) from error
        except ValueError as error:
            raise StoreError(f"{url}: {error}") from error
        except Exception as error:
            if _is_the_stores(error):
                raise self._told(error) from error
            raise
        if self._scheme == "s3":
            self._fs.retries = _RETRIES
        self._root = PurePosixPath(root)

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        try:
            with self._asked():
                entries = self._fs.ls(path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file")

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._asked():
            return bytes(self._fs.cat_file(path))

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._asked(), self._needs_the_bucket():
            self._fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` unless it exists; False where it does. Atomic among all writers."""
        path = self._path(name)
        try:
            with self._asked(), self._needs_the_bucket():
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except StoreError as error:
            if "ConditionalRequestConflict" in repr(error.__cause__ and error.__cause__.__cause__):
                return False  # S3's word for: somebody else is creating it at this moment
            raise
        return True

    def adopt(self, name: str, path: Path) -> None:
        target = self._path(name)
        with self._asked(), self._needs_the_bucket():
            self._fs.put_file(str(path), target)

    def move(self, name: str, target: str) -> None:
        old, new = self._path(name), self._path(target)
        with self._asked():
            self._fs.copy(old, new)
        self.remove(name)

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._asked():
            if self._fs.exists(path):
                self._fs.rm_file(path)

    @contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        with self.scratch() as root:
            for name in self.names(folder):
                path = self._path(f"{folder}/{name}")
                with self._asked():
                    self._fs.get_file(path, str(root / name))
            yield root

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="oomline-") as folder:
            yield Path(folder)

    def lock(self) -> Lock:
        return LeaseLock(self, above=max(map(lease_of, self.names("journal")), default=0))

    def clear_leftovers(self, folder: str) -> None:
        """An object is there or not: there are none."""

    def _path(self, name: str) -> str:
        return str(self._root / inside(name))

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if _is_the_stores(error):
                raise self._told(error) from error
            raise

    @contextmanager
    def _needs_the_bucket(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url}: {_line(error)}: create the bucket or give another --out"
            ) from error

    def _told(self, error: Exception) -> StoreError:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NO_CREDENTIALS or any(code in repr(error.__cause__) for code in _BAD_CREDENTIALS):
            remedy = _CREDENTIALS_OF.get(self._scheme, "give this process valid credentials")
            return StoreError(f"{self.url}: no valid credentials ({_line(error)}): {remedy}")
        if isinstance(error, OSError) and error.errno in FULL:
            return StoreFull(f"{self.url}: {error.strerror}: make room in {tempfile.gettempdir()} or there")
        if isinstance(error, PermissionError):
            return StoreError(
                f"{self.url}: access denied ({_line(error)}): its credentials must be allowed to list, read, "
                "write and delete there"
            )
        look = _ENDPOINT_OF.get(self._scheme, "the network and the URL")
        return StoreError(f"{self.url}: the store does not answer ({_line(error)}): look at {look}")


def _is_the_stores(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
