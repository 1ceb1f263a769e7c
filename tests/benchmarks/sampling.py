"""What all meters cost the run that is measured, memory 200 times a second and state twenty times:
`python -m tests.benchmarks.sampling`.

One long streaming run (its cost per token is constant); meanwhile both samplers are held and released in turns. Each
pair of neighbouring turns gives one ratio of throughput, sampled over not sampled, so that drift cancels. Two
ratios: tokens per second, which on a machine shared with others is mostly the others; and tokens per second of the
run's own processor time, which others cannot touch. `host_cpu_fraction`: of one core, all that the watching process
used, half of the time without its sampler.
"""

import argparse
import itertools
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from workers.attempt import Attempt
from workers.cell import Cell, Lease, ModelRef
from workers.host import processes
from workers.host.device_host import DeviceHost
from workers.meters import Meter, MeterReading
from workers.meters.state import Counters, StateMeter, StateReading
from workers.modes import Streaming
from workers.outcome import Outcome

GiB = 2**30


class HeldMeter:
    """Blocks the sampler's thread while held."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.released = threading.Event()
        self.released.set()

    def read(self) -> MeterReading:
        self.released.wait()
        return self._meter.read()


class HeldStateMeter:
    """Blocks the thread of the state sampler while held; never the host's own, which reads at the edges of phases."""

    def __init__(self, meter: StateMeter, released: threading.Event) -> None:
        self._meter = meter
        self._released = released
        self.energy_source, self.energy_period_s = meter.energy_source, meter.energy_period_s
        self.not_offered = meter.not_offered

    def read(self) -> StateReading:
        if threading.current_thread() is not threading.main_thread():
            self._released.wait()
        return self._meter.read()

    def counters(self) -> Counters:
        return self._meter.counters()


@dataclass(frozen=True, slots=True)
class Edge:
    """Between two turns. `cpu_s`: processor time of the run so far; None while there is no run."""

    at_s: float
    cpu_s: float | None


class Turns:
    """Holds and releases the samplers of `host` in turns while a lease runs."""

    def __init__(self, host: DeviceHost, turn_s: float) -> None:
        self._server = host._server.pid
        self._turn_s = turn_s
        self._meter = host._sampler._meter = HeldMeter(host._sampler._meter)
        host._state._meter = HeldStateMeter(host._state._meter, self._meter.released)
        self._over = threading.Event()
        self.edges: list[Edge] = []  # even turns are sampled

    def run(self, host: DeviceHost, lease: Lease) -> Attempt:
        began_s = time.monotonic()
        thread = threading.Thread(target=self._take_turns, args=(began_s,))
        thread.start()
        try:
            return host.run(lease)
        finally:
            self._over.set()
            thread.join()
            self._meter.released.set()

    def _take_turns(self, began_s: float) -> None:
        for sampled in itertools.cycle((True, False)):
            self.edges.append(Edge(time.monotonic() - began_s, self._cpu_s()))
            self._meter.released.set() if sampled else self._meter.released.clear()
            if self._over.wait(self._turn_s):
                return

    def _cpu_s(self) -> float | None:
        for pid in processes.children(self._server):
            try:
                return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                return None
        return None


def throughputs(attempt: Attempt, edges: list[Edge]) -> Iterator[tuple[int, float, float]]:
    """(turn, tokens per second, tokens per processor second) of each turn that lies within the decode."""
    times = [step.t_s for step in attempt.steps]
    tokens = [step.token_index for step in attempt.steps]
    for turn, (start, end) in enumerate(itertools.pairwise(edges)):
        if start.cpu_s is None or end.cpu_s is None or start.at_s < times[0] or end.at_s > times[-1]:
            continue
        produced = np.interp(end.at_s, times, tokens) - np.interp(start.at_s, times, tokens)
        yield turn, float(produced / (end.at_s - start.at_s)), float(produced / (end.cpu_s - start.cpu_s))


def ratios(turns: list[tuple[int, float, float]], column: int) -> list[float]:
    """Sampled over not sampled, of neighbouring turns."""
    found = []
    for before, after in itertools.pairwise(turns):
        sampled, held = (before, after) if before[0] % 2 == 0 else (after, before)
        found.append(sampled[column] / held[column])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--turn-s", type=float, default=2.0)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sampling.parquet"))
    options = parser.parse_args()

    host = DeviceHost("benchmark/0", None if options.gpu else 4 * GiB)
    try:
        device = host.describe()
        cell = Cell(
            model=ModelRef(target=options.model, dtype=options.dtype),
            mode="streaming",
            engine="eager",
            prompt_tokens=64,
            length=options.tokens,
            streaming=Streaming(sinks=4, window=64),
        )
        lease = Lease(
            lease_id="sampling.1.0", cell=cell, attempt=1, time_limit_s=3600.0, stall_timeout_s=300.0
        )
        wall_s, cpu_s = time.monotonic(), time.process_time()
        measurement = Turns(host, options.turn_s)
        attempt = measurement.run(host, lease)
        host_cpu_fraction = (time.process_time() - cpu_s) / (time.monotonic() - wall_s)
    finally:
        host.close()
    if attempt.outcome is not Outcome.OK:
        raise SystemExit(f"the run ended {attempt.outcome}: {attempt.failure}")
    turns = list(throughputs(attempt, measurement.edges))
    if len(turns) < 3:
        raise SystemExit(f"only {len(turns)} turns: more --tokens or a shorter --turn-s")
    rows = []
    for column, name in ((1, "tokens per second"), (2, "tokens per processor second")):
        found = ratios(turns, column)
        p5, *_, p95 = statistics.quantiles(found, n=20)
        rows.append(
            {
                "device": device.kind,
                "cores": os.cpu_count(),
                "measure": name,
                "pairs": len(found),
                "sampled": statistics.median(turn[column] for turn in turns if turn[0] % 2 == 0),
                "not_sampled": statistics.median(turn[column] for turn in turns if turn[0] % 2 == 1),
                "ratio_median": statistics.median(found),
                "ratio_p5": p5,
                "ratio_p95": p95,
                "host_cpu_fraction": host_cpu_fraction,
                "interval_p50_s": attempt.sample_interval_p50_s,
            }
        )
    table = pl.DataFrame(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.out)
    with pl.Config(tbl_cols=-1, tbl_width_chars=220, fmt_str_lengths=40):
        print(table)


if __name__ == "__main__":
    main()
