"""One driver per run folder: the second is refused at once, and told who holds it.

On a disk the kernel's `flock` keeps the lock, so that it dies with its holder. In an object store the lock is a
row of lease objects `lock-000001`, `lock-000002`, ...: each created exclusively, the highest number holds. A holder
that stopped beating is passed by creating the next number, which only one contender can do.
"""

import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

BEAT_S = 10.0
STALE_S = 60.0
_LEASE = re.compile(r"lock-(\d{6})")


class FolderInUse(Exception):
    """Another driver runs on this folder; the message names its pid and host."""


class LockLost(Exception):
    """This driver was silent for so long that another one took the folder over: it must write no more."""


class Lock(Protocol):
    def check(self) -> None:
        """Raises `LockLost` when somebody else took the folder over."""

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
    def __init__(
        self,
        objects: Objects,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._objects, self._now = objects, now
        self._lost = False
        number, holder = self._highest()
        if holder is not None and not holder.is_dead() and now() - holder.beat < stale_s:
            raise FolderInUse(_refusal(objects.url, holder))
        self._number = number + 1
        if not objects.create(self._name, self._beat()):
            raise FolderInUse(_refusal(objects.url, self._highest()[1]))
        if number:
            objects.remove(_lease_name(number))
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(beat_s,), daemon=True, name="run-folder-lease"
        )
        self._thread.start()

    def check(self) -> None:
        if self._lost:
            raise LockLost(f"{self._objects.url} was taken over by another driver while this one was silent")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        self._objects.remove(self._name)

    @property
    def _name(self) -> str:
        return _lease_name(self._number)

    def _keep(self, beat_s: float) -> None:
        while not self._stop.wait(beat_s):
            # A store out of reach for a moment is no reason to stop: whoever takes over raises the number.
            with suppress(OSError):
                if self._highest()[0] > self._number:
                    self._lost = True
                    return
                self._objects.write(self._name, self._beat())

    def _beat(self) -> bytes:
        owner = asdict(this_process()) | {"beat": self._now()}
        return _encode(Owner(**owner))

    def _highest(self) -> tuple[int, Owner | None]:
        numbers = [int(match[1]) for name in self._objects.names("lock") if (match := _LEASE.fullmatch(name))]
        if not numbers:
            return 0, None
        try:
            return max(numbers), _parse(self._objects.read(_lease_name(max(numbers))))
        except FileNotFoundError:  # released between the listing and the reading
            return max(numbers), None


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
