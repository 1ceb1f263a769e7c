"""The files here that a sweep file names: where they are, and whether they are still what they were."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.spec import SweepSpec
from workers.models.shapes import shapes
from workers.models.source import POCKETS, RANDOM
from workers.models.wanted import METADATA, matching

_WEIGHTS = ("*.safetensors", "*.bin")
#: Files of at most this size are hashed whole; of larger ones this many blocks, evenly spaced.
_WHOLE_BYTES, _BLOCKS, _BLOCK_BYTES = 4 * 2**20, 64, 4096
_LONGEST_HEADER = 100 * 10**6  # of a safetensors file, by its format


def resolve_paths(spec: SweepSpec, folder: Path) -> SweepSpec:
    """The sweep with every path of a model or corpus made absolute, so that it means the same on all machines that
    have the file there. A relative one is looked for in `folder`, that of the sweep file, then in the current folder.

    In a Ray job that brings its working directory, a path in it stays relative: each worker runs in its own copy.
    """
    models = [
        model.model_copy(
            update={
                "target": _resolve_model(model.target, folder),
                "draft": model.draft and _resolve_model(model.draft, folder),
            }
        )
        for model in spec.models
    ]
    found = _find(spec.corpus, folder)
    corpus = _as_workers_find(found) if found is not None and found.is_file() else spec.corpus
    return spec.model_copy(update={"models": models, "corpus": corpus})


def fingerprints(spec: SweepSpec) -> dict[str, str]:
    """Path of each file here that the models and the corpus consist of -> a hash of its size and content.

    Of large files only some blocks are read, the beginning of each tensor among them: other weights differ there.
    """
    return {str(path): _fingerprint(path) for path in sorted(set(_files(spec)))}


def _resolve_model(name: str, folder: Path) -> str:
    prefix = RANDOM if name.startswith(RANDOM) else ""
    bare = name.removeprefix(RANDOM)
    if bare in (shapes() if prefix else POCKETS) or "://" in bare:
        return name
    found = _find(bare, folder)
    if found is None and bare.startswith(("./", "../")):
        found = Path(os.path.abspath(folder / bare))  # where it should be: the message says so
    return f"{prefix}{_as_workers_find(found)}" if found is not None else name


def _find(name: str, folder: Path) -> Path | None:
    path = Path(name).expanduser()
    candidates = (Path(os.path.abspath(base / path)) for base in (folder, Path.cwd()))
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _as_workers_find(path: Path) -> str:
    here = Path.cwd()
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        job = {}
    shipped = (job.get("runtime_env") or {}).get("working_dir")
    return f"./{path.relative_to(here)}" if shipped and path.is_relative_to(here) else str(path)


def _files(spec: SweepSpec) -> Iterator[Path]:
    for model in spec.models:
        for name in filter(None, (model.target, model.draft)):
            path = Path(name.removeprefix(RANDOM))
            if name.startswith(RANDOM):
                yield from (path / "config.json",) if (path / "config.json").is_file() else ()
            elif path.is_dir():
                names = matching((file.name for file in path.iterdir()), (*METADATA, *_WEIGHTS, "*.py"))
                yield from (path / name for name in names)
            elif path.is_file():
                yield path
    if Path(spec.corpus).is_file():
        yield Path(spec.corpus)


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            spaced = [(size - _BLOCK_BYTES) * block // (_BLOCKS - 1) for block in range(_BLOCKS)]
            for place in [*spaced, *(_tensors(file) if path.suffix == ".safetensors" else ())]:
                file.seek(place)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


def _tensors(file: BinaryIO) -> list[int]:
    """Where in the file each tensor begins; nowhere in a file that is damaged, which is told when it is loaded."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        return sorted(8 + length + entry["data_offsets"][0] for entry in header.values() if "dtype" in entry)
    except (ValueError, TypeError, AttributeError, LookupError):
        return []
