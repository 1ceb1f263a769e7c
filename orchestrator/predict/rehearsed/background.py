"""Rehearsals in processes of their own: a driver's loop goes on meanwhile, a plan uses the cores that there are."""

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.predict.rehearsed import store

_MAIN = "orchestrator.predict.rehearsed.background_main"
#: A process that has not answered by then is left out of account: formulas answer.
_LIMIT_S = 300.0
#: By its path: Ray may replace a submitted job's folder by another one under the same path, and torch asks where it is.
_FOLDER = os.getcwd()


class Call(NamedTuple):
    """`function(*args)` asks `store.answered` whatever it needs. `family`: calls with much in common go to one process."""

    family: Hashable
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(slots=True)
class _Asked:
    future: "Future[dict[str, Any]]"
    since: float
    is_learnt: bool = False


class Background:
    """Up to `processes` processes, each started when it is needed and alive until `close`. Use it from one thread."""

    def __init__(self, processes: int) -> None:
        self._answerers = [_Answerer() for _ in range(processes)]
        self._of: dict[Hashable, _Answerer] = {}
        self._asked: dict[Hashable, _Asked] = {}

    def is_ready(self, key: Hashable, call: Call) -> bool:
        """Whether all that `call` asks is known by now, or will not be. The first time it is begun. Never waits."""
        if key not in self._asked:
            self._asked[key] = _Asked(self._submit(call), time.monotonic())
        asked = self._asked[key]
        if asked.is_learnt:
            return True
        if asked.future.done():
            store.learn(asked.future.result())
            asked.is_learnt = True
        return asked.is_learnt or time.monotonic() - asked.since > _LIMIT_S

    def answer(self, calls: Sequence[Call]) -> None:
        """Wait until all that `calls` ask is known."""
        self.begin(calls)()

    def begin(self, calls: Sequence[Call]) -> Callable[[], None]:
        """Start on `calls`. Returns what waits until all that they ask is known."""
        futures = [self._submit(call) for call in calls]

        def wait() -> None:
            for future in futures:
                store.learn(future.result())

        return wait

    def close(self) -> None:
        for answerer in self._answerers:
            answerer.close()

    def _submit(self, call: Call) -> "Future[dict[str, Any]]":
        if call.family not in self._of:
            self._of[call.family] = min(self._answerers, key=lambda answerer: answerer.families)
            self._of[call.family].families += 1
        return self._of[call.family].submit(call)


class _Answerer:
    """One process, and the thread that talks to it. What a process that ended was asked stays unknown."""

    def __init__(self) -> None:
        self.families = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rehearsals")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def submit(self, call: Call) -> "Future[dict[str, Any]]":
        return self._thread.submit(self._ask, call)

    def close(self) -> None:
        self._is_closed = True
        if (running := self._process) is not None:
            running.kill()  # what it is asked now ends
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _ask(self, call: Call) -> dict[str, Any]:
        if self._is_closed:
            return {}
        try:
            if self._process is None:
                self._process = _started()
            if self._is_closed:  # meanwhile
                return {}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            pickle.dump((call.function, call.args), self._process.stdin)
            self._process.stdin.flush()
            return dict(pickle.load(self._process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError):
            self._end()  # the next question starts another
            return {}

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _started() -> "subprocess.Popen[bytes]":
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",  # the folder of the sweep file may hold modules with the names of ours
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", _MAIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        cwd=_FOLDER,
        process_group=0,  # a person's Ctrl-C is for the driver, which ends it
    )


def answer_in_parallel(calls: Sequence[Call], processes: int | None = None) -> None:
    """Make what `calls` ask known to this process, on as many cores as there are. Does nothing where all of it is known,
    or where one process would do it all: the caller's own is as good.
    """
    unknown = [call for call in calls if not _is_known(call)]
    families = len({call.family for call in unknown})
    count = min(len(os.sched_getaffinity(0)) if processes is None else processes, families)
    if count < 2:
        return
    with background(count) as started:
        started.answer(unknown)


@contextlib.contextmanager
def background(processes: int) -> Iterator[Background]:
    started = Background(processes)
    try:
        yield started
    finally:
        started.close()


def _is_known(call: Call) -> bool:
    with store.known_only() as missed:
        call.function(*call.args)
    return not missed
