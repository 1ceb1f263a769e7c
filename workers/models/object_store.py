"""Models kept in an object store (s3://, gs://, any fsspec URL): copied once per node."""

import fnmatch
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.utils import tokenize

from workers.models import LoadError
from workers.models.node_cache import build_once

_EXTRA = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def fetch(url: str, patterns: list[str], pickled: list[str]) -> Path:
    """The node-local copy of the folder (or `.gguf` file) at `url`: the files whose name matches.

    `pickled`: patterns wanted only when no `patterns` brought weights. The copy is keyed by the listing (names,
    sizes, entity tags), so that a changed object is a new copy. Raises `LoadError`.
    """
    scheme = url.partition("://")[0]
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        listing = filesystem.find(root, maxdepth=1, detail=True)
    except ImportError as error:
        extra = _EXTRA.get(scheme)
        remedy = f"pip install oomline[{extra}]" if extra else "pip install its fsspec package"
        raise LoadError(f"{url}: {scheme}:// is not readable here ({error}); {remedy}") from error
    except ValueError as error:
        raise LoadError(f"{url}: {error}") from error
    except Exception as error:  # each store raises its own kinds
        raise LoadError(f"{url}: cannot list it: {type(error).__name__}: {error}") from error
    single = url.endswith(".gguf")
    wanted = {path: info for path, info in listing.items() if single or _matches(path, patterns)}
    if pickled and not any(path.endswith(".safetensors") for path in wanted):
        wanted |= {path: info for path, info in listing.items() if _matches(path, pickled)}
    if not wanted:
        raise LoadError(f"{url}: no model there (none of {', '.join(patterns)})")

    def copy(folder: Path) -> None:
        for path in wanted:
            filesystem.get_file(path, str(folder / PurePosixPath(path).name))

    try:
        folder = build_once(f"models/{tokenize(url, sorted(wanted.items()))}", copy)
    except Exception as error:
        raise LoadError(f"{url}: cannot copy it to this node: {type(error).__name__}: {error}") from error
    return folder / PurePosixPath(root).name if single else folder


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(PurePosixPath(path).name, pattern) for pattern in patterns)
