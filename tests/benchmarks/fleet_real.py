"""The part of `tests.benchmarks.fleet` that needs a real Ray: busy devices, and the time between two cells."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import polars as pl

from orchestrator.fleet.ray_fleet import FleetOptions
from orchestrator.journal.journal import Journal
from orchestrator.spec import SweepSpec
from tests.orchestrator.fleet.sweeping import sweep_on_ray
from tests.orchestrator.sweep.simulated import EventLog, FlatEstimates, attempt, spec
from workers.actor import DeviceActor
from workers.attempt import Attempt, Device
from workers.cell import Cell, Lease
from workers.host.device_host import PRELOAD
from workers.host.forkserver import environment
from workers.ranks import ALONE, Ranks

DEVICES = 8
CELLS = 192


_STARTS = """
import gc, importlib, os, sys, time
for module in sys.argv[1:]:
    importlib.import_module(module)
from workers.host.child.run import prepare
from workers.ranks import ALONE, Ranks
gc.collect()
gc.freeze()
for _ in range(30):
    read, write = os.pipe()
    began = time.perf_counter()
    if os.fork() == 0:
        prepare(is_cpu=True)
        os.write(write, b".")
        os._exit(0)
    os.read(read, 1)
    print(time.perf_counter() - began)
    os.wait()
"""


class SleepingActor:
    """A device whose cells sleep: 10 ms for each token."""

    def __init__(self, slot: str, cpu_total_bytes: int | None, board: Any = None) -> None:
        self._slot = slot

    def describe(self) -> Device:
        return Device(kind="cpu", uuid=self._slot, node="here", total_bytes=1)

    def run(self, lease: Lease, ranks: Ranks = ALONE) -> Attempt:
        began = time.time()
        time.sleep(_sleep_s(lease.cell))
        return attempt(lease, self.describe(), started_at=began, duration_s=time.time() - began)


def _sleep_s(cell: Cell) -> float:
    return cell.length / 100


def measure() -> list[dict[str, object]]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        lengths = [500 + 25 * k for k in range(12)]
        sleeping = spec(modes=["baseline"], lengths=lengths, repeats=CELLS // len(lengths))
        tiny = spec(
            modes=["baseline"],
            models=[{"target": "pocket", "dtype": "float32"}],
            lengths=[8],
            prompt_tokens=[8],
            repeats=30,
        )
        return [
            _busy(_run(sleeping, SleepingActor, f"{folder}/sleeping", DEVICES)),
            _between(_run(tiny, DeviceActor, f"{folder}/tiny", 1)),
        ]


def _run(asked: SweepSpec, actor: type, out: str, slots: int) -> pl.DataFrame:
    journal = Journal.open(out, writable=True)
    sweep_on_ray(
        asked,
        actor,
        FleetOptions(run_id="fleet-benchmark", cpu_slots=slots),
        journal,
        address="local",
        cpus=slots,
        estimates=FlatEstimates(_sleep_s),
        watcher=EventLog(),
    )
    with journal.view() as view:
        times = ("device_uuid", "started_at", "duration_s", "first_model_call_s", "load_s", "outcome")
        return view.rows.select(times).sort("started_at").collect()


def _busy(times: pl.DataFrame) -> dict[str, object]:
    """Start-up apart: a device counts from its first cell, to the end of the sweep."""
    end = (times["started_at"] + times["duration_s"]).max()
    first = times.group_by("device_uuid").agg(pl.col("started_at").min())["started_at"]
    return {
        "case": f"{DEVICES} slots of a real Ray, {len(times)} cells of 5 to 8 s",
        "busy_fraction": times["duration_s"].sum() / (end - first).sum(),  # type: ignore[operator]
    }


def _between(times: pl.DataFrame) -> dict[str, object]:
    """One device, one cell after the other: the first is left out, it starts cold.

    To the first call: from a cell's end to the moment before the next one's first forward, the start of its process
    and the load of its weights (warm) included.
    """
    gaps = times.with_columns(
        gap_s=pl.col("started_at") - (pl.col("started_at") + pl.col("duration_s")).shift(1)
    ).slice(1)
    return {
        "case": f"a real device host on a CPU, {len(times)} cells of the pocket model",
        "between_cells_ms_median": 1000 * gaps["gap_s"].median(),  # type: ignore[operator]
        "between_cells_ms_p95": 1000 * gaps["gap_s"].quantile(0.95),  # type: ignore[operator]
        "to_first_model_call_ms_median": 1000 * (gaps["gap_s"] + gaps["first_model_call_s"]).median(),  # type: ignore[operator]
        "of_which_load_ms_median": 1000 * gaps["load_s"].median(),  # type: ignore[operator]
        "start_of_a_process_ms_median": 1000 * _process_start_s(),
    }


def _process_start_s() -> float:
    """Median: fork from a process that has all that a cell needs, and what every cell then takes first. A part of it
    lies between two cells, where it waits for nobody."""
    done = subprocess.run(
        [sys.executable, "-c", _STARTS, *PRELOAD],
        env=environment({"CUDA_VISIBLE_DEVICES": ""}),
        capture_output=True,
        text=True,
        check=True,
    )
    return statistics.median(map(float, done.stdout.split()))
