"""Real shapes of different kinds on this machine's device: memory and bytes of the cache, counted and predicted.

Drives one device directly (no Ray): each length of each shape is a cell in a process of its own, with random weights. The
prompt is read in chunks, the last tokens are generated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import UnknownWeightsError, predict
from orchestrator.predict.shape import ShapeError, shape_for
from workers.attempt import Device
from workers.cell import Cell, Lease, ModelRef
from workers.host.device_host import DeviceHost
from workers.meters.nvml import NoDevice
from workers.models.config import read_config
from workers.rehearsal.kv_law import KvRehearsal
from workers.units import GiB

#: What each is an example of.
SHAPES = {
    "random:qwen3-8b": "grouped keys, QK-norm",
    "random:gemma-3-4b": "sliding windows",
    "random:glm-4.7-flash": "MLA, experts",
    "random:qwen3.5-27b": "gated delta rule, hybrid",
    "random:gpt-oss-20b": "sinks, windows, experts",
}
#: New tokens of each cell, and tokens of a pass over its prompt.
NEW, CHUNK = 64, 1024
_LIMIT_S = 300.0
_CPU_SLOT = 4 * GiB


#: Of the printed table; the file has all columns.
_SHOWN = (
    *("shape", "tokens", "outcome", "kv_counted_bytes", "kv_predicted_bytes", "peak_device_bytes"),
    *("peak_predicted_bytes", "error_pct", "predicted_by", "seconds"),
)


def run(names: Sequence[str], tokens: Sequence[int], dtype: str, out: Path) -> None:
    """Prints each cell as it ends, and the table with the predictions last."""
    host = _open()
    try:
        device = host.describe()
        cells = [_cell(name, count, dtype) for name in names for count in sorted(tokens)]
        rows = []
        for cell in cells:
            rows.append(_measured(cell, host))
            print(rows[-1], flush=True)
    finally:
        host.close()
    table = pl.DataFrame(
        [row | _told(cell, device, row) for cell, row in zip(cells, rows, strict=True)],
        infer_schema_length=None,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(out)
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=240, fmt_str_lengths=60, tbl_hide_dataframe_shape=True
    ):
        print(table.select(_SHOWN))
    print(f"{device.kind}, {dtype}, torch {torch.__version__}; written to {out}")


def _cell(name: str, tokens: int, dtype: str) -> Cell:
    """One that holds `tokens` tokens when it ends: the last one is not read."""
    return Cell(
        model=ModelRef(target=name, dtype=dtype),
        mode="baseline",
        engine="eager",
        purpose="probe",  # no warm-up: memory is what is asked
        prompt_tokens=tokens + 1 - NEW,
        prefill_chunk=CHUNK,
        length=NEW,
    )


def _told(cell: Cell, device: Device, row: dict[str, Any]) -> dict[str, Any]:
    """By config alone."""
    name, read = cell.model.target, cell.prompt_tokens + NEW - 1
    config = read_config(name, cell.model)
    peak_bytes, predicted_by = None, None
    try:
        found = predict(cell, shape_for(name, cell.model), None, DeviceProfile.of(device), loaded=True)
        peak_bytes, predicted_by = found.peak_bytes, found.predicted_by
    except (ShapeError, UnknownWeightsError) as error:
        predicted_by = str(error)
    measured = row["peak_device_bytes"]
    return {
        "error_pct": (peak_bytes / measured - 1) * 100 if peak_bytes and measured else None,
        "kv_predicted_bytes": KvRehearsal(config, getattr(torch, cell.model.dtype)).bytes_after(read),
        "peak_predicted_bytes": peak_bytes,
        "predicted_by": predicted_by,
    }


def _measured(cell: Cell, host: DeviceHost) -> dict[str, Any]:
    lease = Lease(
        lease_id=f"{cell.cell_id}.1", cell=cell, attempt=1, time_limit_s=_LIMIT_S, stall_timeout_s=_LIMIT_S
    )
    attempt = host.run(lease)
    measured = attempt.measured
    return {
        "shape": cell.model.target,
        "kind": SHAPES.get(cell.model.target, ""),
        "tokens": cell.prompt_tokens + NEW - 1,
        "outcome": str(attempt.outcome),
        "error": attempt.failure.error_message[:200] if attempt.failure else None,
        "weights_bytes": measured.weights_bytes,
        "kv_counted_bytes": measured.kv_cache_bytes,
        "peak_device_bytes": attempt.peak_device_bytes,
        "peak_allocated_bytes": measured.peak_allocated_bytes,
        "peak_reserved_bytes": measured.peak_reserved_bytes,
        "load_s": measured.load_s,
        "seconds": attempt.duration_s,
    }


def _open() -> DeviceHost:
    try:
        return DeviceHost("card")
    except NoDevice:
        print("no card: a CPU slot")
        return DeviceHost("cpu", cpu_total_bytes=_CPU_SLOT)
