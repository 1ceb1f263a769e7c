"""From a model's name to files on this node.

random:NAME, random:FOLDER   a shape, no weights
pocket, pocket-draft, pocket-retrieve   folders of this package
scheme://bucket/folder       copied once per node; a single .gguf file too
.../file.gguf                a file here, or ORG/REPO/file.gguf on the hub
FOLDER                       as it is
ORG/REPO                     the hub
"""

import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path

from workers.cell import ModelRef
from workers.extras import FOR_GGUF
from workers.models import Unavailable, hub, object_store
from workers.models.wanted import Wanted
from workers.models.weight_files import weight_names

RANDOM = "random:"
#: The models of this package by name.
POCKETS = ("pocket", "pocket-draft", "pocket-retrieve")
_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Files:
    """A model on this node: `folder`, and the one `.gguf` file in it that counts, if any.

    `weights`: the files that hold the weights, an index among them; empty where they were not asked for.
    """

    folder: Path
    gguf: str | None = None
    weights: tuple[Path, ...] = ()


def locate(name: str, ref: ModelRef, *, weights: bool) -> Files:
    """Bring `name` to this node: its weights too, or only what describes it. Raises `LoadError`.

    Not for `random:` names, which have no files.
    """
    wanted = Wanted(weights=weights, code=ref.trust_remote_code, pickles=ref.allow_pickle)
    if name.endswith(".gguf"):
        if not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
            raise Unavailable(f"{name}: GGUF files need other packages: {FOR_GGUF}")
        file = object_store.fetch(name, wanted) if "://" in name else _gguf(name)
        return Files(file.parent, file.name, (file,) if weights else ())
    if "://" in name:
        return _files(name, object_store.fetch(name, wanted), wanted)
    folder = _folder(name)
    if folder.is_dir():
        return _files(name, folder, wanted)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise Unavailable(
            f"{name}: no such folder on {socket.gethostname()}; name one that every node has, a URL (s3://, gs://), "
            "a hub id, random:NAME or pocket"
        )
    return _files(name, hub.snapshot(name, wanted), wanted)


def is_here(name: str) -> bool:
    """Whether what describes `name` lies on this node as it is named, so that nothing has to be asked for it."""
    return name.startswith(RANDOM) or _folder(name).is_dir() or Path(name).expanduser().is_file()


def _files(name: str, folder: Path, wanted: Wanted) -> Files:
    listing = [path.name for path in folder.iterdir()]

    def read(file: str) -> bytes:
        return (folder / file).read_bytes()

    if not wanted.weights:
        return Files(folder)
    return Files(
        folder, weights=tuple(folder / w for w in weight_names(name, listing, read, pickles=wanted.pickles))
    )


def _folder(name: str) -> Path:
    return _DATA / name if name in POCKETS else Path(name).expanduser()


def _gguf(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name.count("/") != 2 or name.startswith((".", "/", "~")):
        raise Unavailable(
            f"{name}: no such file on {socket.gethostname()}; name a .gguf file that every node has, a URL (s3://, "
            "gs://), or ORG/REPO/file.gguf on the hub"
        )
    repository, _, file = name.rpartition("/")
    return hub.file(repository, file)
