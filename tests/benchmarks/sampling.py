"""What sampling memory 200 times a second costs the run that is measured: `python -m tests.benchmarks.sampling`.

One long streaming run (its cost per token is constant); meanwhile the sampler is held and released in turns. Each
pair of neighbouring turns gives one ratio of throughput with to throughput without, so that drift cancels.
"""

import argparse
import itertools
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from workers.attempt import Attempt, Outcome
from workers.cell import Cell, Lease, ModelRef, Streaming
from workers.host.device_host import DeviceHost
from workers.meters import Meter, Reading

GiB = 2**30
_EDGE = 0.1  # of a turn: dropped at each end


class HeldMeter:
    """Blocks the sampler's thread while held."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.released = threading.Event()
        self.released.set()

    def read(self) -> Reading:
        self.released.wait()
        return self._meter.read()


@dataclass(frozen=True)
class Turn:
    start_s: float
    end_s: float
    sampled: bool


def measure(host: DeviceHost, lease: Lease, turn_s: float) -> tuple[Attempt, list[Turn]]:
    """Turn times are since the child's start, as the attempt's steps are."""
    sampler = host._sampler
    meter = sampler._meter = HeldMeter(sampler._meter)
    turns: list[Turn] = []
    over = threading.Event()
    began = time.monotonic()

    def take_turns() -> None:
        sampled = True
        start = time.monotonic()
        while not over.wait(turn_s):
            now = time.monotonic()
            turns.append(Turn(start - began, now - began, sampled))
            sampled, start = not sampled, now
            meter.released.set() if sampled else meter.released.clear()

    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        attempt = host.run(lease)
    finally:
        over.set()
        thread.join()
        meter.released.set()
    return attempt, turns


def throughput(attempt: Attempt, turns: list[Turn]) -> pl.DataFrame:
    """One row per turn that lies within the decode: sampled, tokens_per_s."""
    steps = pl.DataFrame(
        {"t_s": [s.t_s for s in attempt.steps], "token": [s.token_index for s in attempt.steps]}
    )
    rows = []
    for index, turn in enumerate(turns):
        edge = _EDGE * (turn.end_s - turn.start_s)
        inside = steps.filter(pl.col("t_s").is_between(turn.start_s + edge, turn.end_s - edge))
        if turn.start_s < attempt.steps[0].t_s or len(inside) < 5:
            continue
        first, last = inside.row(0), inside.row(-1)
        rows.append(
            {
                "turn": index,
                "sampled": turn.sampled,
                "tokens_per_s": (last[1] - first[1]) / (last[0] - first[0]),
            }
        )
    return pl.DataFrame(rows, schema={"turn": pl.Int64, "sampled": pl.Boolean, "tokens_per_s": pl.Float64})


def ratios(turns: pl.DataFrame) -> list[float]:
    """Sampled over not sampled, of neighbouring turns."""
    found = []
    for before, after in itertools.pairwise(turns.iter_rows(named=True)):
        if after["turn"] == before["turn"] + 1:
            with_, without = (before, after) if before["sampled"] else (after, before)
            found.append(with_["tokens_per_s"] / without["tokens_per_s"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--turn-s", type=float, default=3.0)
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
        attempt, turns = measure(host, lease, options.turn_s)
    finally:
        host.close()
    if attempt.outcome is not Outcome.OK:
        raise SystemExit(f"the run ended {attempt.outcome}: {attempt.failure}")
    per_turn = throughput(attempt, turns)
    found = ratios(per_turn)
    quantiles = statistics.quantiles(found, n=20)
    by_state = dict(per_turn.group_by("sampled").agg(pl.col("tokens_per_s").median()).iter_rows())
    table = pl.DataFrame(
        {
            "device": device.kind,
            "cores": os.cpu_count(),
            "pairs": len(found),
            "tokens_per_s_sampled": by_state.get(True),
            "tokens_per_s_not_sampled": by_state.get(False),
            "ratio_median": statistics.median(found),
            "ratio_p5": quantiles[0],
            "ratio_p95": quantiles[-1],
            "interval_p50_s": attempt.sample_interval_p50_s,
        }
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.out)
    with pl.Config(tbl_cols=-1, tbl_width_chars=200):
        print(table)


if __name__ == "__main__":
    main()
