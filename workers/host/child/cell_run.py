"""What is known of the cell that a child runs, so far. A failure reports it too."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from workers.attempt import Measured, Phase
from workers.cell import Cell
from workers.engines.session import Session
from workers.host.child.device import ChildDevice
from workers.host.child.recorder import RunRecorder
from workers.host.events import Event, Request


@dataclass
class CellRun:
    """One cell on one device, from the request to its last event.

    `open_twin`: opens a session of the same model with a full cache in its dtype; None where the cell's is that.
    """

    request: Request
    device: ChildDevice
    send: Callable[[Event], None]
    recorder: RunRecorder
    measured: Measured = field(default_factory=Measured)
    output_ids: tuple[int, ...] = ()
    results: tuple[Any, ...] = ()
    open_twin: Callable[[], Session] | None = None

    @property
    def cell(self) -> Cell:
        return self.request.lease.cell

    def note(self, **fields: object) -> None:
        """Set fields of `measured`."""
        self.measured = replace(self.measured, **fields)  # type: ignore[arg-type]

    def end(self, produced: int) -> None:
        """End the measured part. What comes after it counts against no budget and enters no measurement."""
        recorder = self.recorder
        ended_s = time.monotonic()
        self.device.end_run()
        recorder.finish()
        self.note(
            new_tokens=produced, kv_cache_bytes=recorder.kv_cache_bytes(), **self.device.peaks()._asdict()
        )
        recorder.phase(Phase.DONE)
        self.device.lift_limits()
        timing = recorder.timing(self.cell.batch_size, ended_s)
        self.note(**{name: getattr(timing, name) for name in timing.__slots__})
