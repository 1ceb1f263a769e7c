"""Each question in a child process of its own, with a limit of time and of memory, a few at a time."""

import json
import multiprocessing
import multiprocessing.process
import os
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """`content`: what the child returned, None where it did not; then `failure` says why."""

    name: str
    content: Any
    failure: str
    seconds: float


@dataclass
class _Child:
    name: str
    process: multiprocessing.process.BaseProcess
    path: Path
    started: float


def answers(
    names: Iterable[str],
    ask: str,
    *,
    jobs: int,
    limit_s: float,
    limit_bytes: int,
    imports: Sequence[str] = (),
) -> Iterator[Answer]:
    """Yield each answer as it comes. Children are forked from a server that has imported torch, transformers and `imports`
    (modules that start no thread), and nothing that this process holds: its memory would count against their limit, its
    threads are not theirs.

    `ask`: a function as MODULE:NAME, which returns plain JSON values. A child that is too slow is killed.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "transformers", *imports])
    waiting = list(names)[::-1]
    running: list[_Child] = []
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                path = Path(folder) / f"{len(waiting)}.json"
                process = server.Process(target=_child, args=(name, ask, path, limit_bytes))
                process.start()
                running.append(_Child(name, process, path, time.monotonic()))
            time.sleep(_POLL_S)
            for child in list(running):
                seconds = time.monotonic() - child.started
                if child.process.is_alive() and seconds <= limit_s:
                    continue
                running.remove(child)
                yield _ended(child, seconds, limit_s)


def _ended(child: _Child, seconds: float, limit_s: float) -> Answer:
    if child.process.is_alive():
        child.process.kill()
        child.process.join()
        return Answer(child.name, None, f"not done after {limit_s:.0f} s", seconds)
    child.process.join()
    if not child.path.exists():
        return Answer(child.name, None, f"its process ended with status {child.process.exitcode}", seconds)
    return Answer(child.name, json.loads(child.path.read_text()), "", seconds)


def _child(name: str, ask: str, path: Path, limit_bytes: int) -> None:
    os.nice(5)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    part = path.with_suffix(".part")
    part.write_text(json.dumps(resolve_name(ask)(name)))
    part.rename(path)
