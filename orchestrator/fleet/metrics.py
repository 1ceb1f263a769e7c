"""Exports the sweep's gauges and counters through `ray.util.metrics`, for Ray's dashboard, Prometheus and Grafana.

Their names begin with `ray_oomline_`. A series ends with the process that sets it, so all are set in the driver. Tags
are bounded: slots, modes, outcomes, never a cell.
"""

from ray.util.metrics import Counter, Gauge

from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    SweepEvent,
    Tick,
    Watcher,
)


class MeteredWatcher:
    """Sets the metrics, and passes every event on to `inner`. It can be created before Ray is connected."""

    def __init__(self, inner: Watcher) -> None:
        self._inner = inner
        device = ("slot",)
        self._used = Gauge("oomline_device_used_bytes", "Memory that the running cell uses.", device)
        self._limit = Gauge(
            "oomline_device_limit_bytes", "Budget of the running cell, or the device.", device
        )
        self._speed = Gauge("oomline_tokens_per_second", "Recent decode speed of the running cell.", device)
        self._busy = Gauge("oomline_device_busy", "1 while a cell runs on the device.", device)
        self._tokens = Counter("oomline_tokens_total", "New tokens of finished cells.", ("mode", "engine"))
        self._cells = Counter(
            "oomline_cells_total", "Attempts that came back.", ("mode", "engine", "outcome")
        )
        self._queued = Gauge("oomline_cells_queued", "Cells that wait for a device.")
        self._running = Gauge("oomline_cells_running", "Cells in flight.")
        self._devices = Gauge("oomline_devices", "Devices of the sweep that live.")

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
                tags = {"slot": event.slot}
                if event.progress.device_used_bytes is not None:
                    self._used.set(event.progress.device_used_bytes, tags)
                if event.progress.tokens_per_s is not None:
                    self._speed.set(event.progress.tokens_per_s, tags)
            case CellFinished():
                cell = event.attempt.cell
                tags = {"mode": cell.mode, "engine": cell.engine}
                self._cells.inc(1, {**tags, "outcome": str(event.attempt.outcome)})
                if event.attempt.measured.new_tokens:
                    self._tokens.inc(event.attempt.measured.new_tokens, tags)
                if event.slot is not None:
                    self._idle(event.slot)
            case Tick():
                self._queued.set(event.queued)
                self._running.set(event.running)
                self._devices.set(event.devices)

    def _idle(self, slot: str) -> None:
        for gauge in (self._busy, self._used, self._speed):
            gauge.set(0, {"slot": slot})
