"""Models kept in an object store (s3://, gs://, any fsspec URL): copied once per node."""

from pathlib import Path, PurePosixPath

import fsspec
from fsspec.utils import tokenize

from workers.extras import for_store
from workers.models import LoadError, Unavailable
from workers.models.node_cache import build_once
from workers.models.wanted import Wanted


def fetch(url: str, wanted: Wanted) -> Path:
    """The node-local copy of the folder at `url`, or of the single `.gguf` file there. Raises `LoadError`.

    The copy is keyed by the listing (names, sizes, entity tags), so that a changed object is a new copy.
    """
    scheme = url.partition("://")[0]
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        found = filesystem.find(root, maxdepth=1, detail=True)
    except ImportError as error:
        raise Unavailable(f"{url}: {scheme}:// cannot be read here: {for_store(scheme)}") from error
    except ValueError as error:  # no such kind of store, or no URL of it
        raise LoadError(f"{url}: cannot be read: {error}") from error
    except Exception as error:  # each store raises its own kinds
        raise Unavailable(f"{url}: cannot be listed: {type(error).__name__}: {error}") from error
    listing = {PurePosixPath(path).name: (path, info) for path, info in found.items()}
    if not listing:
        raise LoadError(f"{url}: nothing there")

    def read(name: str) -> bytes:
        content: bytes = filesystem.cat_file(listing[name][0])
        return content

    names = list(listing) if url.endswith(".gguf") else wanted.choose(url, listing, read)

    def copy(folder: Path) -> None:
        for name in names:
            filesystem.get_file(listing[name][0], str(folder / name))

    try:
        folder = build_once(f"models/{tokenize(url, [listing[name] for name in names])}", copy)
    except Exception as error:
        raise Unavailable(f"{url}: cannot be copied to this node: {type(error).__name__}: {error}") from error
    return folder / names[0] if url.endswith(".gguf") else folder
