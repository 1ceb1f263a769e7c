"""Reads clocks and energy of the machine's processors, where the kernel lets this user read them."""

import threading
from collections.abc import Iterable
from pathlib import Path

from workers.meters.state import Counters, StateReading


class CpuState:
    """The processors of the machine under `root`. Implements `StateMeter`. Energy is that of all packages, whoever
    used them."""

    energy_source = "rapl"
    energy_period_s = 0.001

    def __init__(self, root: Path = Path("/")) -> None:
        self.not_offered: dict[str, str] = {}
        self._clocks = _readable(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if not self._clocks:
            self.not_offered["cpu_clock"] = "no cpufreq that this user may read"
        counters = _readable(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))
        self._packages = [_Rapl(path) for path in counters]
        if not self._packages:
            self.not_offered["energy"] = "no RAPL counter that this user may read"

    def read(self) -> StateReading:
        for package in self._packages:
            package.joules()  # often enough to see it wrap
        clocks = [khz / 1e3 for khz in map(_number, self._clocks) if khz is not None]  # a core may go offline
        return StateReading(cpu_clock_mhz=sum(clocks) / len(clocks) if clocks else None)

    def counters(self) -> Counters:
        if not self._packages:
            return Counters()
        return Counters(energy_j=sum(package.joules() for package in self._packages))


class _Rapl:
    """One package's counter, which starts again at 0 when it is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._range_uj = int((path.parent / "max_energy_range_uj").read_text())
        self._last_uj = int(path.read_text())
        self._total_uj = 0
        self._lock = threading.Lock()  # a thread reads it now and then, another at the edges of phases

    def joules(self) -> float:
        with self._lock:
            now_uj = int(self._path.read_text())
            self._total_uj += (now_uj - self._last_uj) % (self._range_uj + 1)
            self._last_uj = now_uj
            return self._total_uj / 1e6


def _readable(paths: Iterable[Path]) -> list[Path]:
    return [path for path in sorted(paths) if _number(path) is not None]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
