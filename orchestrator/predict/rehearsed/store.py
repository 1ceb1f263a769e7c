"""Answers kept on disk by the content of their question: an equal one is asked again in every process."""

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workers.libraries import library_versions
from workers.models.node_cache import cache_dir
from workers.rehearsal.passes import NotRehearsable

#: Where answers are kept, below the node's cache.
_FOLDER = "rehearsals"
#: The code that answers depend on, beside torch and transformers: packages of this project.
_CODE = ("workers", "orchestrator.predict")

#: By key. An exception: it cannot be rehearsed, and why; never on disk, as the next version may.
_answers: dict[str, Any] = {}
#: What `listening` notes, and whether `known_only` holds.
_heard: list[dict[str, Any]] = []
_missed: list[list[str]] = []


def answered(question: dict[str, Any], find: Callable[[], Any]) -> Any:
    """What `find` returned for an equal question, else what it returns now. Both are plain JSON values.

    A folder that cannot be read or written costs nothing but the time to find the answer again. Raises `NotRehearsable`.
    """
    key = _key(question)
    if key not in _answers:
        answer = _read(_path(key))
        if answer is None:
            answer = _found(key, find)
        _answers[key] = answer
    for heard in _heard:
        heard[key] = _answers[key]
    if isinstance(_answers[key], NotRehearsable):
        raise NotRehearsable(*_answers[key].args)
    return _answers[key]


@contextlib.contextmanager
def known_only() -> Iterator[list[str]]:
    """Within the context nothing is rehearsed: a question without an answer raises `NotRehearsable`. Gives the keys of
    those.
    """
    missed: list[str] = []
    _missed.append(missed)
    try:
        yield missed
    finally:
        _missed.pop()


@contextlib.contextmanager
def listening() -> Iterator[dict[str, Any]]:
    """Gives the answers to all that is asked within the context, for `learn` in another process."""
    heard: dict[str, Any] = {}
    _heard.append(heard)
    try:
        yield heard
    finally:
        _heard.pop()


def learn(heard: Mapping[str, Any]) -> None:
    """Take over what another process found."""
    _answers.update(heard)


def forget() -> None:
    """Drop what is held in memory."""
    _answers.clear()


def _found(key: str, find: Callable[[], Any]) -> Any:
    if _missed:
        for missed in _missed:
            missed.append(key)
        raise NotRehearsable("not rehearsed yet")
    try:
        answer = find()
    except NotRehearsable as refusal:
        return refusal
    _write(_path(key), answer)
    return answer


def _key(question: dict[str, Any]) -> str:
    content = json.dumps([question, _versions()], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def _versions() -> list[str]:
    """Of torch, transformers, and of the code itself."""
    found = [library_versions()]
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
