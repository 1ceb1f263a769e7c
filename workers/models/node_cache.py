"""Work that is done once per node and kept: copies of object-store models, tokenised corpora."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from workers.models import Unavailable

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT})


def cache_dir() -> Path:
    """`OOMLINE_CACHE`, else `oomline` below the XDG cache folder."""
    if folder := os.environ.get("OOMLINE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oomline"


def _folders() -> list[Path]:
    """Where entries may lie. A folder that a person named is the only one; else a temporary one stands behind it,
    for containers whose home cannot be written."""
    if os.environ.get("OOMLINE_CACHE"):
        return [cache_dir()]
    return [cache_dir(), Path(tempfile.gettempdir()) / f"oomline-cache-{os.getuid()}"]


def cannot_be_written(error: BaseException) -> bool:
    """Whether `error` says that a folder cannot be written by us, whatever we write."""
    return isinstance(error, OSError) and error.errno in _NOT_WRITABLE


def built(key: str) -> Path | None:
    """The folder `key` of the cache, if some process of this node has filled it."""
    return next((folder / key for folder in _folders() if (folder / key).is_dir()), None)


def build_once(key: str, build: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache; `build(folder)` fills it first if no process of this node has done so.

    Raises `Unavailable` where no folder can be written.

    `build` works in a temporary folder that is renamed when complete: a builder that dies leaves nothing behind
    that a reader could take for the whole. Others wait for the lock, which dies with its holder.
    """
    if folder := built(key):
        return folder
    final = _writable() / key
    final.parent.mkdir(parents=True, exist_ok=True)
    with open(final.with_name(final.name + ".lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=final.name + ".part-", dir=final.parent))
            try:
                build(scratch)
                scratch.rename(final)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
    return final


def _writable() -> Path:
    refusals = []
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (
                folder.stat().st_uid != os.getuid()
            ):  # below a shared temporary folder anyone may have been first
                raise PermissionError(errno.EACCES, "belongs to another user")
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            if not cannot_be_written(error):
                raise
            refusals.append(f"{folder}: {error.strerror}")
    raise Unavailable(
        f"no cache folder can be written ({'; '.join(refusals)}): set OOMLINE_CACHE to one that can"
    )
