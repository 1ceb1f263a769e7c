"""The events that `run(..., on_event=...)` hands on, each a frozen dataclass."""

from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    Notice,
    SweepEnded,
    SweepStarted,
    Tick,
)

__all__ = [
    "CellFinished",
    "CellProgressed",
    "CellStarted",
    "DeviceJoined",
    "DeviceLost",
    "Notice",
    "SweepEnded",
    "SweepStarted",
    "Tick",
]
