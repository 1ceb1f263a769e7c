"""Work that is done once per node and kept: copies of object-store models, tokenised corpora."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """`OOMLINE_CACHE`, else `oomline` below the XDG cache folder."""
    if folder := os.environ.get("OOMLINE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oomline"


def built(key: str) -> Path | None:
    """The folder `key` of the cache, if some process of this node has filled it."""
    folder = cache_dir() / key
    return folder if folder.is_dir() else None


def build_once(key: str, build: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache; `build(folder)` fills it first if no process of this node has done so.

    `build` works in a temporary folder that is renamed when complete: a builder that dies leaves nothing behind
    that a reader could take for the whole. Others wait for the lock, which dies with its holder.
    """
    if folder := built(key):
        return folder
    final = cache_dir() / key
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
