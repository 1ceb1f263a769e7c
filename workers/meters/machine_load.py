"""Reads who used the processors of this machine: a cell, its hosts, others, the hypervisor. From /proc.

Times of processes and of the machine are in ticks of 10 ms there: two reads a second apart are right within 2 %.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.meters.host_memory import CELL_NAME

_TICKS = os.sysconf("SC_CLK_TCK")
#: Begins the names of cells and of the processes that fork them, in /proc/PID/comm.
_OURS = CELL_NAME.partition("-")[0].encode() + b"-"


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """All in seconds since some moment of the past, summed over cores. `ours`: by process id, of each fork server on this
    machine with its cells, those that have ended too, and of each host, which started one. `cell`, `waited`: the cell's
    time on a core, and its time in the queue for one; None once it has ended.
    """

    at: float
    busy: float
    stolen: float
    ours: Mapping[int, float]
    cell: float | None
    waited: float | None


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """What kept a machine busy between two moments. Named as in `workers.machine_state`."""

    host_cores: int
    host_steal_pct: float | None = None
    host_other_load: float | None = None
    cpu_wait_pct: float | None = None


def machine_times(pid: int, root: Path = Path("/proc")) -> MachineTimes:
    """Read the times now; `pid`: the cell's process. Takes milliseconds on a machine with many processes."""
    user, nice, system, _, _, irq, softirq, stolen = map(
        int, (root / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    cell, waited = _times_of(pid, root)
    return MachineTimes(
        at=time.monotonic(),
        busy=(user + nice + system + irq + softirq) / _TICKS,
        stolen=stolen / _TICKS,
        ours=_ours(root),
        cell=cell,
        waited=waited,
    )


def load_between(before: MachineTimes, after: MachineTimes) -> MachineLoad:
    """Return the load between two readings. What cannot be told apart in so short a time is None."""
    cores = os.cpu_count() or 1
    seconds = after.at - before.at
    if seconds < 10 / _TICKS:
        return MachineLoad(cores)
    busy, stolen = after.busy - before.busy, after.stolen - before.stolen
    # A server that has ended takes its account with it: what it did before is no negative load of ours now.
    ours = sum(now - before.ours.get(pid, 0.0) for pid, now in after.ours.items())
    waited = None
    if None not in (before.cell, after.cell, before.waited, after.waited):
        ran = after.cell - before.cell  # type: ignore[operator]
        queued = after.waited - before.waited  # type: ignore[operator]
        waited = 100 * queued / (ran + queued) if ran + queued > 0 else None
    return MachineLoad(
        host_cores=cores,
        host_steal_pct=100 * stolen / (busy + stolen) if busy + stolen > 0 else 0.0,
        host_other_load=max(0.0, busy - ours) / seconds,
        cpu_wait_pct=waited,
    )


def _times_of(pid: int, root: Path) -> tuple[float | None, float | None]:
    """(on a core, waiting for one), of all threads that live."""
    ran = waited = 0
    try:
        for thread in (root / str(pid) / "task").iterdir():
            on_core, queued, _ = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(on_core), waited + int(queued)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None, None
    return (ran / 1e9, waited / 1e9) if ran else (None, None)


def _ours(root: Path) -> dict[int, float]:
    """A fork server's account has its ended children; so nothing is lost when a cell ends."""
    parent: dict[int, int] = {}
    alone: dict[int, int] = {}  # ticks of a process
    with_ended: dict[int, int] = {}  # of those of ours, with the children that have ended
    for folder in root.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = stat.partition(b"(")[2].rpartition(b")")
        pid, fields = int(folder.name), rest.split()
        parent[pid] = int(fields[1])
        alone[pid] = sum(map(int, fields[11:13]))  # utime, stime
        if name.startswith(_OURS):
            with_ended[pid] = sum(map(int, fields[11:15]))
    found: dict[int, float] = {}
    for pid, ticks in with_ended.items():
        while parent[pid] in with_ended:
            pid = parent[pid]
        found[pid] = found.get(pid, 0.0) + ticks / _TICKS
    for host in {parent[server] for server in found} & alone.keys():
        found[host] = alone[host] / _TICKS
    return found
