"""Peaks of whole cells beside their predictions: the graph engine, and scoring, which `--record` does not run.

Drives one device directly (no Ray). `outside`: what the device holds beyond context and allocator when the peak is reached:
kernels and graphs, `kernels_bytes` of `orchestrator.predict`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import predict
from orchestrator.predict.shape import shape_for
from workers.attempt import Device
from workers.cell import Cell, Lease, ModelRef, Streaming
from workers.host.device_host import DeviceHost
from workers.libraries import library_versions
from workers.meters.nvml import NoDevice
from workers.units import GiB, MiB

#: Each of another kind that the graph engine has.
SHAPES = ("random:pythia-1.4b", "random:llama-3.2-1b", "random:qwen3-1.7b", "random:gemma-3-4b")
_NEW, _LIMIT_S, _CPU_SLOT = 32, 120.0, 4 * GiB


def peaks(out: Path, names: Sequence[str], lengths: Sequence[int]) -> None:
    """Print each cell as it ends; write all to `out`, Parquet."""
    try:
        host = DeviceHost("card")
    except NoDevice:
        host = DeviceHost("cpu", cpu_total_bytes=_CPU_SLOT)
    rows = []
    try:
        device = host.describe()
        print(f"{device.kind}, {library_versions()}")
        for cell in [cell for name in names for length in lengths for cell in _cells(name, length)]:
            rows.append(_row(cell, host, device))
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    finally:
        host.close()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(out)


def _cells(name: str, length: int) -> list[Cell]:
    model = ModelRef(target=name)

    def cell(mode: str, engine: str, **fields: Any) -> Cell:
        new = {"prompt_tokens": length, "length": _NEW, **fields}
        return Cell(model=model, mode=mode, engine=engine, purpose="probe", **new)  # type: ignore[arg-type]

    ring = Streaming(sinks=4, window=1024)
    return [
        cell("baseline", "graph", prefill_chunk=1024),
        cell("streaming", "graph", streaming=ring),
        cell("baseline", "eager", workload="score", prompt_tokens=0, length=length, prefill_chunk=1024),
    ]


def _row(cell: Cell, host: DeviceHost, device: Device) -> dict[str, Any]:
    lease = Lease(
        lease_id=f"{cell.cell_id}.1", cell=cell, attempt=1, time_limit_s=_LIMIT_S, stall_timeout_s=_LIMIT_S
    )
    attempt = host.run(lease)
    profile = DeviceProfile.of(device, attempt.context_bytes)
    told = predict(cell, shape_for(cell.model.target, cell.model), None, profile, loaded=True)
    peak, reserved = attempt.peak_device_bytes, attempt.measured.peak_reserved_bytes
    outside = None
    if peak is not None and reserved is not None and attempt.context_bytes is not None:
        outside = round((peak - reserved - attempt.context_bytes) / MiB, 1)
    return {
        "shape": cell.model.target,
        "mode": cell.mode,
        "engine": cell.engine,
        "workload": cell.workload,
        "tokens": cell.prompt_tokens + cell.length,
        "outcome": str(attempt.outcome),
        "peak_bytes": peak,
        "predicted_bytes": told.peak_bytes,
        "error_pct": None if peak is None else round((told.peak_bytes / peak - 1) * 100, 2),
        "predicted_by": told.predicted_by,
        "outside_mib": outside,
        "error": None if attempt.failure is None else attempt.failure.error_message[:160],
    }
