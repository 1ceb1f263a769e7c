"""Reads the state of a device twenty times a second, in one thread for its whole life, and at the edges of phases."""

import threading
import time

from workers.attempt import Phase
from workers.machine_state import MachineState
from workers.meters.machine_load import machine_times
from workers.meters.state import StateMeter, StateReading
from workers.meters.state_record import StateEdge, StateRecord, machine_state

INTERVAL_S = 1 / 20
_EDGES = (Phase.PREFILL, Phase.DECODE, Phase.DONE)


class StateSampler:
    """`begin` starts the record of a cell, `mark` tells of its phases, `state` gives its figures. Until closed."""

    def __init__(self, meter: StateMeter, interval_s: float = INTERVAL_S) -> None:
        self._meter = meter
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._record = StateRecord()
        self._pid = 0
        self._latest = StateReading()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="state-sampler", daemon=True)
        self._thread.start()

    def begin(self, pid: int) -> None:
        """Forget the last cell. `pid`: the process of the next one."""
        with self._lock:
            self._record, self._pid = StateRecord(), pid

    def mark(self, phase: Phase) -> None:
        """The cell has entered `phase`. Only the phases of its run are of interest, and each only once."""
        if phase not in _EDGES or phase in self._record.edges:
            return
        if phase is Phase.DONE:
            self._read()
        edge = StateEdge(time.monotonic(), self._meter.counters(), machine_times(self._pid))
        with self._lock:
            self._record.edges[phase] = edge
        if phase is not Phase.DONE:
            self._read()

    def latest(self) -> StateReading:
        return self._latest

    def state(self, new_tokens: int) -> MachineState | None:
        """Return the state during the run. `new_tokens`: of all sequences."""
        with self._lock:
            return machine_state(
                self._record,
                energy_source=self._meter.energy_source,
                energy_period_s=self._meter.energy_period_s,
                not_offered=self._meter.not_offered,
                new_tokens=new_tokens,
            )

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._read()

    def _read(self) -> None:
        reading = self._meter.read()
        now = time.monotonic()
        with self._lock:
            self._latest = reading
            if self._is_running():
                self._record.add(now, reading)

    def _is_running(self) -> bool:
        return Phase.PREFILL in self._record.edges and Phase.DONE not in self._record.edges
