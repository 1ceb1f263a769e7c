"""One process's memory, from /proc.

`data`: the private writable mappings, which is what RLIMIT_DATA limits (VmData). `resident`: pages in memory (RSS).
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from workers.meters import Reading

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NOTHING = Reading(None, None)


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


def data_peak(before: ProcessMemory, after: ProcessMemory) -> int | None:
    """The exact high-water mark of `data` between two readings of one process, free of sampling.

    Linux keeps none of `data`, only of `virtual`; what is not data (files, code, stack) hardly moves while a model
    runs, so the difference is the data. None when `virtual` never rose above its earlier mark (weights files were
    mapped then).
    """
    if after.peak_virtual <= before.peak_virtual:
        return None
    return after.peak_virtual - (after.virtual - after.data)


def unshared_resident_bytes(pid: int) -> int:
    """Resident pages that are not of files or shared memory. 0 once the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


class ProcessMeter:
    """Reads data (with the stack: statm does not split them) and RSS of the process it follows. About 4 us."""

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

    def read(self) -> Reading:
        with self._lock:
            if self._fd is None:
                return _NOTHING
            try:
                fields = os.pread(self._fd, 128, 0).split()
            except ProcessLookupError:
                return _NOTHING
        if len(fields) < 6 or fields[0] == b"0":
            return _NOTHING  # a zombie
        return Reading(int(fields[5]) * _PAGE, int(fields[1]) * _PAGE)


def own_data_and_stack() -> int:
    """What a `ProcessMeter` that follows this process reads as its data, now."""
    return int(Path("/proc/self/statm").read_bytes().split()[5]) * _PAGE
