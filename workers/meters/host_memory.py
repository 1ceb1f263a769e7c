"""Reads how full this machine, or the container around this process, is. Ray's memory monitor acts on this figure.

Ray ends workers at 95 % of the smaller of the two (`RAY_memory_usage_threshold`). It may end an innocent neighbour: it
compares the workers, and the memory of a cell is in a child of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_RAY_THRESHOLD = 0.95
_MARGIN = 0.05  # what a cell may take between two readings

CELL_NAME = "oomline-cell"  #: the name of child processes in /proc/PID/comm


@dataclass(frozen=True, slots=True)
class HostMemory:
    used_bytes: int
    total_bytes: int

    @property
    def fraction(self) -> float:
        return self.used_bytes / self.total_bytes


def limit_below_ray(environ: Mapping[str, str]) -> float:
    """Return the fraction in use beyond which the largest cell is ended, so that Ray's monitor need not act."""
    return max(0.0, float(environ.get("RAY_memory_usage_threshold", _RAY_THRESHOLD)) - _MARGIN)


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Return the fuller of the system and the memory cgroup (v2, then v1) around this process. Page cache counts as
    free."""
    candidates = [_system(root), _cgroup_v2(root), _cgroup_v1(root)]
    return max((c for c in candidates if c is not None), key=lambda memory: memory.fraction)


def kernel_oom_kills() -> int:
    """Return how many processes the kernel's OOM killer has ended on this machine since boot."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def is_largest_cell(pid: int, resident_bytes: int) -> bool:
    """Return whether no other cell's process on this machine holds more."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if int(comm.parent.name) == pid or comm.read_text().strip() != CELL_NAME:
                continue
            fields = (comm.parent / "statm").read_bytes().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if (int(fields[1]) - int(fields[2])) * 4096 > resident_bytes:
            return False
    return True


def _system(root: Path) -> HostMemory:
    fields = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    return HostMemory(fields["MemTotal"] - fields["MemAvailable"], fields["MemTotal"])


def _cgroup_v2(root: Path) -> HostMemory | None:
    return _cgroup(root / "sys/fs/cgroup", "memory.current", "memory.max", "inactive_file")


def _cgroup_v1(root: Path) -> HostMemory | None:
    return _cgroup(
        root / "sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"
    )


def _cgroup(folder: Path, usage: str, limit: str, reclaimable: str) -> HostMemory | None:
    try:
        bound = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if bound == "max" or int(bound) >= 2**60:  # v1 writes "no limit" as a huge number
        return None
    return HostMemory(used - int(stat.get(reclaimable, 0)), int(bound))
