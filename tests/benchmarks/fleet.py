"""How light is the driver, how busy are the devices, how long does the report of a very large run take?

`python -m tests.benchmarks.fleet [--parts simulated,real,tables] [--out FOLDER]`

`simulated`: the driver's loop with its real journal over a simulated fleet and a virtual clock: 1,000 devices and
100,000 cells that return attempts with samples; then 8 devices. The simulation's own time is not the driver's.
`real`: 8 slots of a real Ray on this machine, each cell a sleep of 5 to 8 s; then small cells on one real device
host, for the overhead between a cell's end and the next one's first model call.
`tables`: tables and report from the journal of 100,000 attempts with 50 million samples (see `tables.py`).
Prints a table for each and writes it as `fleet-benchmark-PART.parquet`.
"""

import argparse
import dataclasses
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from orchestrator.fleet import FleetEvent
from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from orchestrator.sweep.loop import Sweep
from tests.benchmarks import fleet_real, tables
from tests.orchestrator.sweep.simulated import (
    EventLog,
    Fate,
    FlatEstimates,
    SimulatedClock,
    SimulatedFleet,
    device,
    spec,
)
from workers.attempt import Attempt, Device, Sample
from workers.cell import Cell, Lease

PARTS = ("simulated", "real", "tables")
SAMPLES = 500


class SampledFleet(SimulatedFleet):
    """Hands back attempts with samples, and knows how long it worked itself."""

    samples = tuple(
        Sample(t_s=0.1 * k, device_used_bytes=k * 2**23, process_used_bytes=k * 2**23) for k in range(SAMPLES)
    )
    own_cpu_s = 0.0

    def poll(self, timeout_s: float, linger_s: float = 0.0) -> list[FleetEvent]:
        began = time.process_time()
        events = super().poll(timeout_s, linger_s)
        self.own_cpu_s += time.process_time() - began
        return events

    def submit(self, slots: Sequence[str], lease: Lease) -> None:
        began = time.process_time()
        super().submit(slots, lease)
        self.leases.clear()
        self.own_cpu_s += time.process_time() - began

    def attempt(self, lease: Lease, on: Device, fate: Fate, began: float) -> Attempt:
        return dataclasses.replace(super().attempt(lease, on, fate, began), samples=self.samples)


class Quiet(EventLog):
    def see(self, event: object) -> None:
        pass


def like(cell: Cell) -> tuple[str, str, int]:
    return cell.model.target, cell.mode, cell.length


def _times(journal: Journal) -> dict[str, float]:
    """When the journal's attempts began and ended, in seconds, and how many there are."""
    with journal.view() as view:
        times = view.rows.select(
            began=pl.col("started_at").min(),
            ended=(pl.col("started_at") + pl.col("duration_s")).max(),
            busy=pl.col("duration_s").sum(),
            longest=pl.col("duration_s").max(),
            attempts=pl.len(),
        ).collect()
    return times.row(0, named=True)


def simulated(
    devices: int, cells: int, seconds: tuple[float, float], journal_folder: str
) -> dict[str, object]:
    """Cells alike but for their repeat take alike; predictions are off by up to a factor of two."""
    draw = random.Random(0)
    asked = spec(
        modes=["baseline", "streaming"],
        models=[
            {"target": f"random:{name}"}
            for name in ("pythia-410m", "pythia-1b", "pythia-2.8b", "pythia-6.9b")
        ],
        lengths=[500 * k for k in range(1, 26)],
        repeats=-(-cells // 200),
    )
    plan = expand(asked)[:cells]
    low, high = seconds
    likes = {like(cell): low * (high / low) ** draw.random() for cell in plan}
    durations = {cell.cell_id: max(low, likes[like(cell)] * draw.uniform(0.9, 1.1)) for cell in plan}
    guesses = {key: seconds * 2 ** draw.uniform(-1, 1) for key, seconds in likes.items()}
    clock = SimulatedClock()
    fleet = SampledFleet(
        [device(f"gpu-{k}", node=f"node-{k // 8}") for k in range(devices)],
        lambda lease, on: Fate(durations[lease.lease_id.partition(".")[0]]),
        clock,
        restart_s=30.0,
    )
    sweep_began, wall_began = time.process_time(), time.perf_counter()
    journal = Journal.open(journal_folder, writable=True)
    sweep = Sweep(
        spec=asked,
        cells=plan,
        questions=[],
        run_id="fleet-benchmark",
        fleet=fleet,
        journal=journal,
        history=[],
        estimates=FlatEstimates(lambda cell: guesses[like(cell)]),
        watcher=Quiet(),
        clock=clock,
    )
    sweep.run()
    cpu_s = time.process_time() - sweep_began - fleet.own_cpu_s
    wall_s = time.perf_counter() - wall_began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = _times(journal)
    makespan = row["ended"] - row["began"]
    bound = max(row["busy"] / devices, row["longest"])
    assert row["attempts"] == cells, row
    return {
        "case": f"simulated, {devices} devices, {cells} cells of {low:.0f} to {high:.0f} s",
        "driver_cpu_ms_per_cell": 1000 * cpu_s / cells,
        "peak_memory_gib": memory,
        "makespan_over_lower_bound": makespan / bound,
        "busy_fraction": row["busy"] / devices / makespan,
        "wall_s": wall_s,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: all")
    options.add_argument("--devices", type=int, default=1000)
    options.add_argument("--cells", type=int, default=100_000, help="and attempts, of the tables")
    options.add_argument("--out", type=Path, default=Path())
    chosen = options.parse_args()
    parts = chosen.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        options.error(f"--parts {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="oomline-") as folder:
            if part == "simulated":
                small = simulated(8, 2000, (5, 60), f"{folder}/small")
                rows = [small, simulated(chosen.devices, chosen.cells, (5, 300), f"{folder}/large")]
            elif part == "real":
                rows = fleet_real.measure()
            else:
                rows = tables.measure(Path(folder), chosen.cells)
        show(rows, chosen.out / f"fleet-benchmark-{part}.parquet")


def show(rows: Sequence[dict[str, object]], path: Path) -> None:
    frame = pl.concat([pl.DataFrame([row]) for row in rows], how="diagonal")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=80, tbl_width_chars=200, float_precision=3):
        print(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    print(path)


if __name__ == "__main__":
    main()
