"""Answers kept on disk by the content of their question: an equal one is asked again in every process."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from workers.models.node_cache import cache_dir

#: Where answers are kept, below the node's cache.
_FOLDER = "rehearsals"
#: The code that answers depend on, beside torch and transformers: packages of this project.
_CODE = ("workers.rehearsal", "workers.engines.eager", "workers.models", "orchestrator.predict")

_answers: dict[str, Any] = {}


def answered(question: dict[str, Any], find: Callable[[], Any]) -> Any:
    """What `find` returned for an equal question, else what it returns now. Both are plain JSON values.

    A folder that cannot be read or written costs nothing but the time to find the answer again.
    """
    key = _key(question)
    if key not in _answers:
        path = _path(key)
        _answers[key] = _read(path)
        if _answers[key] is None:
            _answers[key] = find()
            _write(path, _answers[key])
    return _answers[key]


def forget() -> None:
    """Drop what is held in memory."""
    _answers.clear()


def _key(question: dict[str, Any]) -> str:
    content = json.dumps([question, _versions()], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def _versions() -> list[str]:
    """Of torch, transformers, and of the code itself."""
    import importlib.util

    found = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    for package in _CODE:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for folder in spec.submodule_search_locations or ():
            for path in sorted(Path(folder).rglob("*.py")):
                found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def _path(key: str) -> Path:
    return cache_dir() / _FOLDER / f"{key}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, answer: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".part") as part:
            json.dump(answer, part)
        os.replace(part.name, path)
    except OSError:
        return
