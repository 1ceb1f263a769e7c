"""From a model's name to files on this node.

random:NAME, random:FOLDER   a shape, no weights
pocket, pocket-draft         folders of this package
scheme://bucket/folder       copied once per node
.../file.gguf                a file here, or ORG/REPO/file.gguf on the hub
FOLDER                       as it is
ORG/REPO                     the hub
"""

from dataclasses import dataclass
from pathlib import Path

from workers.cell import ModelRef
from workers.models import LoadError, hub, object_store

RANDOM = "random:"
_POCKETS = Path(__file__).parent / "data"

#: What a folder must give for a configuration and a tokenizer.
METADATA = ("*.json", "*.jinja", "*.model", "*.txt")
SAFETENSORS = "model*.safetensors"
PICKLED = "pytorch_model*.bin"


@dataclass(frozen=True, slots=True)
class Files:
    """A model on this node: `folder`, and the one `.gguf` file in it that counts, if any."""

    folder: Path
    gguf: str | None = None

    def weights(self) -> list[Path]:
        """The files that hold the weights; pickled ones only where there are no others."""
        if self.gguf:
            return [self.folder / self.gguf]
        return sorted(self.folder.glob(SAFETENSORS)) or sorted(self.folder.glob(PICKLED))


def locate(name: str, ref: ModelRef, *, weights: bool) -> Files:
    """Bring `name` to this node: its weights too, or only what describes it. Raises `LoadError`.

    Not for `random:` names, which have no files.
    """
    if name in ("pocket", "pocket-draft"):
        return Files(_POCKETS / name)
    patterns = [*METADATA, *(["*.py"] if ref.trust_remote_code else []), *([SAFETENSORS] if weights else [])]
    pickled = [PICKLED] if weights and ref.allow_pickle else []
    if "://" in name:
        files = object_store.fetch(name, patterns, pickled)
    elif name.endswith(".gguf"):
        files = _gguf(name)
    elif Path(name).expanduser().is_dir():
        files = Path(name).expanduser()
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise LoadError(f"{name}: no such folder; name an existing one, a hub id, random:NAME or pocket")
    else:
        files = hub.snapshot(name, patterns, pickled)
    found = Files(files.parent, files.name) if files.suffix == ".gguf" else Files(files)
    if weights:
        _refuse_pickles(name, found, ref)
    return found


def _gguf(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_absolute() or name.count("/") != 2:
        raise LoadError(
            f"{name}: no such file; name an existing .gguf file, or ORG/REPO/file.gguf on the hub"
        )
    organisation, repository, file = name.split("/")
    return hub.snapshot(f"{organisation}/{repository}", [file], []) / file


def _refuse_pickles(name: str, files: Files, ref: ModelRef) -> None:
    weights = files.weights()
    if not weights:
        raise LoadError(
            f"{name}: no weights ({SAFETENSORS}) in {files.folder}; put them there or use random:{files.folder}"
        )
    if weights[0].suffix == ".bin" and not ref.allow_pickle:
        raise LoadError(
            f"{name}: only pickled weights ({weights[0].name}), which are not read by default; "
            "convert them to safetensors, or set `allow_pickle: true` for this model"
        )
