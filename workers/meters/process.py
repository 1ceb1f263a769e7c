"""Reads one process's memory, from /proc.

`data`: the private writable mappings, which is what RLIMIT_DATA limits (VmData). `resident`: pages in memory (RSS).
"""

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from workers.meters import MeterReading

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NOTHING = MeterReading(None, None)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """All in bytes. `peak_virtual`: the kernel's own high-water mark of `virtual`, exact."""

    peak_virtual: int
    virtual: int
    data: int


def own_memory() -> ProcessMemory:
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmPeak", "VmSize", "VmData"):
            fields[name] = int(value.split()[0]) * 1024
    return ProcessMemory(fields["VmPeak"], fields["VmSize"], fields["VmData"])


class DataPeak:
    """Measures the exact high-water mark of this process's own `data` from now on, without sampling.

    Linux keeps no mark of `data`, but one of `virtual`. What is virtual but not data (files, code, stack) hardly
    changes while a model runs. A mapping that cannot be touched fills the distance to the mark, so that the mark
    moves with the next byte.
    """

    def __init__(self) -> None:
        memory = own_memory()
        room = max(memory.peak_virtual - memory.virtual, _PAGE)
        self._ballast = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)

    def read(self) -> int:
        """Return the mark in bytes. Ends the measurement."""
        memory = own_memory()
        self._ballast.close()
        return memory.peak_virtual - (memory.virtual - memory.data)


def unshared_resident_bytes(pid: int) -> int:
    """Return the bytes of resident pages that are not of files or shared memory. 0 once the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


class ProcessMeter:
    """Reads data (with the stack: statm does not split them) and RSS of the process that it follows, in about 4 us."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._lock = threading.Lock()  # one thread reads, another follows and leaves

    def follow(self, pid: int) -> None:
        self.leave()
        with self._lock:
            self._fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def leave(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def read(self) -> MeterReading:
        with self._lock:
            if self._fd is None:
                return _NOTHING
            try:
                fields = os.pread(self._fd, 128, 0).split()
            except ProcessLookupError:
                return _NOTHING
        if len(fields) < 6 or fields[0] == b"0":
            return _NOTHING  # a zombie
        return MeterReading(int(fields[5]) * _PAGE, int(fields[1]) * _PAGE)


def own_data_and_stack() -> int:
    """Return what a `ProcessMeter` that follows this process reads as its data now."""
    return int(Path("/proc/self/statm").read_bytes().split()[5]) * _PAGE
