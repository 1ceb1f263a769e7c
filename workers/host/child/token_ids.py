"""Gets the ids that a cell reads: from this node's cache, else from a process of their own while the cell loads.

Reading a corpus may ask a hub, load a tokenizer and tokenise the whole text. Its memory must count against no budget,
and must not depend on whether this node's cache was warm.
"""

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import NoReturn

import numpy as np
import torch

from workers.cell import Cell
from workers.error_kinds import Raised, has_no_disk
from workers.models import LoadError, Unavailable
from workers.models.source import is_here
from workers.text import CorpusError, CorpusUnavailable
from workers.text.corpus import KeptIds, kept_ids, token_ids

_BEAT_S = 1.0


def reading_ids(
    cell: Cell, beat: Callable[[], None]
) -> contextlib.AbstractContextManager[Callable[[], torch.Tensor]]:
    """Start the reader if one is needed. The context gives a function that returns the ids, int64 [tokens]: the
    prompt, or for a score its tokens and the one before them; of a workload that writes its own texts, these. Enter it before a limit is set and a thread is started.

    The function calls `beat` about once a second while it waits. It raises `CorpusError` and `LoadError`.
    """
    count = cell.workload_spec.text_tokens(cell)
    kept = _kept(cell, count)
    if kept is None:
        return _reader(cell, count, beat)
    return contextlib.nullcontext(lambda: _tensor(kept.cut(0, count)))


def _kept(cell: Cell, count: int) -> KeptIds | None:
    """Return the ids if everything that they need is on this node. Errors are left for the reader to report."""
    if not is_here(cell.model.target) or cell.workload_spec.ids is not None:
        return None
    try:
        return kept_ids(cell.corpus, cell.model.target, cell.model, count)
    except Exception:
        return None


@contextlib.contextmanager
def _reader(cell: Cell, count: int, beat: Callable[[], None]) -> Iterator[Callable[[], torch.Tensor]]:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _fetch(cell, count, write_fd)
    os.close(write_fd)
    waited = False

    def ids() -> torch.Tensor:
        nonlocal waited
        answer = b""
        while True:
            ready, _, _ = select.select([pipe], [], [], _BEAT_S)
            if not ready:
                beat()
            elif chunk := pipe.read(65536):
                answer += chunk
            else:
                break
        _, status = os.waitpid(pid, 0)
        waited = True
        return _understood(cell, status, answer)

    with open(read_fd, "rb", buffering=0) as pipe:
        try:
            yield ids
        finally:
            if not waited:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _understood(cell: Cell, status: int, answer: bytes) -> torch.Tensor:
    if status == 0:
        return _tensor(np.frombuffer(answer, dtype=np.int32))
    if os.WIFSIGNALED(status):
        # The cell ends by the signal that its reader got, so that the host sees a crash, or the kernel's OOM killer.
        os.kill(os.getpid(), os.WTERMSIG(status))
    types, message = json.loads(answer)
    if "LoadError" in types:
        raise (Unavailable if "Unavailable" in types else LoadError)(message)
    away = "CorpusUnavailable" in types or has_no_disk(Raised(tuple(types), message))
    kind = CorpusUnavailable if away else CorpusError
    raise kind(message if "CorpusError" in types else f"corpus {cell.corpus}: {types[0]}: {message}")


def _tensor(ids_T: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids_T.astype(np.int64))


def _fetch(cell: Cell, count: int, write_fd: int) -> NoReturn:
    status = 1
    try:
        with open(write_fd, "wb") as pipe:
            try:
                own = cell.workload_spec.ids
                ids = (
                    token_ids(cell.corpus, cell.model.target, cell.model, 0, count)
                    if own is None
                    else resolve_name(own)(cell)
                )
                pipe.write(np.ascontiguousarray(ids, dtype=np.int32).tobytes())
                status = 0
            except Exception as error:
                raised = Raised.of(error)
                pipe.write(json.dumps([raised.types, raised.message]).encode())
    finally:
        os._exit(status)
