"""Exports the sweep's gauges and counters through `ray.util.metrics`, for Ray's dashboard, Prometheus and Grafana.

Their names begin with `ray_oomline_`. A series ends with the process that sets it, so all are set in the driver. Tags
are bounded: the run, slots, modes, outcomes, never a cell. Counters of a run stay exported for as long as the head knows
its driver: the tag `run` keeps them apart from those of the next one.
"""

from ray.util.metrics import Counter, Gauge

from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    SweepEnded,
    SweepEvent,
    Tick,
    Watcher,
)
from workers.attempt import Attempt
from workers.progress import Progress


class MeteredWatcher:
    """Sets the metrics of the run `run`, and passes every event on to `inner`. It can be created before Ray is connected."""

    def __init__(self, inner: Watcher, run: str) -> None:
        self._inner = inner
        device = ("run", "slot")
        cells = ("run", "mode", "engine")
        self._used = Gauge("oomline_device_used_bytes", "Memory that the running cell uses.", device)
        self._limit = Gauge(
            "oomline_device_limit_bytes", "Budget of the running cell, or the device.", device
        )
        self._speed = Gauge("oomline_tokens_per_second", "Recent decode speed of the running cell.", device)
        self._busy = Gauge("oomline_device_busy", "1 while a cell runs on the device.", device)
        self._power = Gauge("oomline_device_power_watts", "Power of the device now.", device)
        self._clock = Gauge("oomline_device_sm_clock_hertz", "Clock of the card's processors now.", device)
        self._heat = Gauge("oomline_device_temperature_celsius", "Temperature of the card now.", device)
        self._throttled = Gauge("oomline_device_throttled", "1 while the card's clock is held down.", device)
        self._others = Gauge(
            "oomline_host_other_load_cores", "Cores that others kept busy during the last cell.", device
        )
        self._energy = Counter(
            "oomline_energy_joules_total", "Energy of devices during finished cells.", cells
        )
        self._tokens = Counter("oomline_tokens_total", "New tokens of finished cells.", cells)
        self._cells = Counter("oomline_cells_total", "Attempts that came back.", (*cells, "outcome"))
        self._queued = Gauge("oomline_cells_queued", "Cells that wait for a device.", ("run",))
        self._running = Gauge("oomline_cells_running", "Cells in flight.", ("run",))
        self._devices = Gauge("oomline_devices", "Devices of the sweep that live.", ("run",))
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge):
                metric.set_default_tags({"run": run})

    def see(self, event: SweepEvent) -> None:
        self._meter(event)
        self._inner.see(event)

    def close(self) -> None:
        self._inner.close()

    def _meter(self, event: SweepEvent) -> None:
        match event:
            case DeviceJoined() | DeviceLost():
                self._idle(event.slot)
            case CellStarted():
                self._busy.set(1, {"slot": event.slot})
                self._limit.set(event.cell.budget or event.device.total_bytes, {"slot": event.slot})
            case CellProgressed():
                self._progressed(event.slot, event.progress)
            case CellFinished():
                self._finished(event.slot, event.attempt)
            case Tick():
                self._queued.set(event.queued)
                self._running.set(event.running)
                self._devices.set(event.devices)
            case SweepEnded():
                for gauge in (self._queued, self._running, self._devices):
                    gauge.set(0)

    def _progressed(self, slot: str, progress: Progress) -> None:
        clock = progress.sm_clock_mhz
        for gauge, value in (
            (self._used, progress.device_used_bytes),
            (self._speed, progress.tokens_per_s),
            (self._power, progress.power_w),
            (self._clock, None if clock is None else 1e6 * clock),
            (self._heat, progress.temperature_c),
            (self._throttled, progress.throttled),
        ):
            if value is not None:
                gauge.set(float(value), {"slot": slot})

    def _finished(self, slot: str | None, attempt: Attempt) -> None:
        tags = {"mode": attempt.cell.mode, "engine": attempt.cell.engine}
        self._cells.inc(1, {**tags, "outcome": str(attempt.outcome)})
        if attempt.measured.new_tokens:
            self._tokens.inc(attempt.measured.new_tokens, tags)
        machine = attempt.machine
        if machine is not None and machine.energy_j:
            self._energy.inc(machine.energy_j, tags)
        if slot is not None:
            if machine is not None and machine.host_other_load is not None:
                self._others.set(machine.host_other_load, {"slot": slot})
            self._idle(slot)

    def _idle(self, slot: str) -> None:
        for gauge in (self._busy, self._used, self._limit, self._speed, self._throttled):
            gauge.set(0, {"slot": slot})
