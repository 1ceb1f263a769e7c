"""One driver per run folder: the second is refused at once, and told who holds it.

On a disk the kernel's `flock` keeps the lock, so that it dies with its holder. In an object store the lock is a
row of lease objects `lock-000001`, `lock-000002`, ...: each created exclusively, the highest number holds. A holder
that stopped beating is passed by creating the next number, which only one contender can do. The number goes up for
ever (a released lease stays, empty) and stands in the name of every journal part, so that a part which comes to the
store after its writer was passed is told from its successor's: see `parts.fenced_off`.
"""

import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.journal.errors import FolderInUse, LockLost, StoreError

_log = logging.getLogger(__name__)
BEAT_S = 10.0
STALE_S = 60.0
_RELEASED = b"{}"
_LEASE = re.compile(r"lock-(\d{6})")


class Lock(Protocol):
    @property
    def lease(self) -> int:
        """Goes up with every holder; 0 where the lock cannot be taken from a living one."""

    @property
    def lost(self) -> str | None:
        """Why this driver must end: somebody else took the folder over. Asks nobody, returns at once."""

    def check(self) -> None:
        """Ask who holds the folder. Raises `LockLost` when somebody else does, `StoreError` when nobody answers."""

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Owner:
    """`boot`: the kernel's boot id: a pid is looked up only on the machine where it means something."""

    pid: int
    host: str
    boot: str
    started: str
    beat: float = 0.0

    def is_dead(self) -> bool:
        """Known dead: a pid of this machine's present boot that is gone or was given to another process."""
        return self.boot == _boot_id() and self.started != _process_start(self.pid)

    def says(self) -> str:
        return f"pid {self.pid} on {self.host}"


def this_process() -> Owner:
    return Owner(os.getpid(), socket.gethostname(), _boot_id(), _process_start(os.getpid()), time.time())


class FileLock:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _parse(os.pread(self._file, 4096, 0))
            os.close(self._file)
            raise FolderInUse(_refusal(str(path.parent), holder)) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, _encode(this_process()), 0)

    lease = 0
    lost = None

    def check(self) -> None:
        """The kernel takes this lock from nobody."""

    def release(self) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


class Objects(Protocol):
    """What a lease needs of an object store; `create` is atomic, and False where the object exists."""

    url: str

    def names(self, folder: str) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def remove(self, name: str) -> None: ...


class LeaseLock:
    """`above`: the highest lease that ever wrote in this folder, as far as its files tell.

    A holder that had no answer from the store for half of `stale_s` competes for the next number like everybody else:
    another driver may be about to pass it.
    """

    def __init__(
        self,
        objects: Objects,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
        now: Callable[[], float] = time.time,
        above: int = 0,
    ) -> None:
        self._objects, self._now, self._stale_s = objects, now, stale_s
        self._mutex = threading.Lock()
        self.lost: str | None = None
        numbers = self._numbers()
        highest = max(numbers, default=0)
        holder = self._holder(highest)
        if holder is not None and not holder.is_dead() and now() - holder.beat < stale_s:
            raise FolderInUse(_refusal(objects.url, holder))
        self.lease, self._beaten_at = highest, now()
        if not self._claim(max(highest, above) + 1):
            raise FolderInUse(_refusal(objects.url, self._holder(max(self._numbers(), default=0))))
        for number in numbers:
            objects.remove(_lease_name(number))
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(beat_s,), daemon=True, name="run-folder-lease"
        )
        self._thread.start()

    def check(self) -> None:
        with self._mutex:
            self._ask()

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.lost is not None:
            return
        try:
            self._objects.write(_lease_name(self.lease), _RELEASED)
        except StoreError as error:
            _log.warning("%s; it is free for another driver in %.0f s", error, self._stale_s)

    def _keep(self, beat_s: float) -> None:
        away = False
        while not self._stop.wait(beat_s):
            try:
                with self._mutex:
                    self._ask()
                    self._beat()
                away = False
            except LockLost as lost:
                _log.warning("%s", lost)
                return
            except StoreError as error:
                if not away:
                    _log.warning("%s; trying again every %.0f s", error, beat_s)
                away = True

    def _ask(self) -> None:
        """Raises `LockLost` where this lease is not the highest, or is gone: whoever passed it may have ended since."""
        if self.lost is None and max(self._numbers(), default=0) != self.lease:
            self._lose()
        if self.lost is None and self._now() - self._beaten_at > self._stale_s / 2:
            old = self.lease
            if not self._claim(old + 1):
                self._lose()
            else:
                self._objects.remove(_lease_name(old))
        if self.lost is not None:
            raise LockLost(self.lost)

    def _lose(self) -> None:
        self.lost = (
            f"{self._objects.url} was taken over by another driver while this one had no answer from it: wait for that "
            "one, then run the same command again"
        )

    def _beat(self) -> None:
        at = self._now()
        self._objects.write(_lease_name(self.lease), self._beaten(at))
        self._beaten_at = at

    def _claim(self, number: int) -> bool:
        """Take lease `number`, unless somebody has it. A store whose answer was lost may have it from us already."""
        at = self._now()
        data = self._beaten(at)
        if not self._objects.create(_lease_name(number), data) and self._read(number) != data:
            return False
        self.lease, self._beaten_at = number, at
        return True

    def _beaten(self, at: float) -> bytes:
        return _encode(Owner(**(asdict(this_process()) | {"beat": at})))

    def _numbers(self) -> list[int]:
        return [int(match[1]) for name in self._objects.names("lock") if (match := _LEASE.fullmatch(name))]

    def _holder(self, number: int) -> Owner | None:
        return _parse(self._read(number)) if number else None

    def _read(self, number: int) -> bytes:
        try:
            return self._objects.read(_lease_name(number))
        except FileNotFoundError:  # passed between the listing and the reading
            return b""


def _lease_name(number: int) -> str:
    return f"lock/lock-{number:06d}"


def _refusal(where: str, holder: Owner | None) -> str:
    who = holder.says() if holder else "another driver"
    return f"{where} is in use by {who}; wait for it, end it, or give another --out"


def _encode(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _parse(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str:
    """When the process began, in the kernel's ticks; "" when there is no such process (or no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
