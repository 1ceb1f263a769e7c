"""Whether energy adds up: the decode of 2n tokens over that of n, which is 2 in a mode of constant cost.

`python -m tests.benchmarks.energy`, on a card. Cells of `streaming` in turns, n and 2n tokens. Prefill and idle power stand
apart: `above_idle_j` is the decode's energy less the power of the idle card times its duration.
"""

import argparse
import statistics
from pathlib import Path

import polars as pl

from workers.attempt import Attempt
from workers.cell import Cell, Engine, Lease, ModelRef
from workers.host.device_host import DeviceHost
from workers.modes import Streaming
from workers.outcome import Outcome


def run(host: DeviceHost, options: argparse.Namespace, length: int, repeat: int) -> Attempt:
    engine: Engine = options.engine
    cell = Cell(
        model=ModelRef(target=options.model, dtype=options.dtype),
        mode="streaming",
        engine=engine,
        prompt_tokens=512,
        length=length,
        streaming=Streaming(sinks=4, window=508),
        repeat=repeat,
    )
    lease = Lease(
        lease_id=f"energy.{length}.{repeat}", cell=cell, attempt=1, time_limit_s=300.0, stall_timeout_s=120.0
    )
    attempt = host.run(lease)
    if attempt.outcome is not Outcome.OK or attempt.machine is None:
        raise SystemExit(f"{length} tokens ended {attempt.outcome}: {attempt.failure}")
    return attempt


def row(attempt: Attempt, idle_w: float | None) -> dict[str, object]:
    machine, measured = attempt.machine, attempt.measured
    assert machine is not None
    above = None
    if machine.energy_decode_j is not None and idle_w is not None and measured.decode_s is not None:
        above = machine.energy_decode_j - idle_w * measured.decode_s
    return {
        "tokens": attempt.cell.length,
        "repeat": attempt.cell.repeat,
        "decode_s": measured.decode_s,
        "tokens_per_s": measured.tokens_per_s,
        "prefill_j": machine.energy_prefill_j,
        "prefill_source": machine.energy_prefill_source,
        "decode_j": machine.energy_decode_j,
        "decode_source": machine.energy_decode_source,
        "above_idle_j": above,
        "j_per_million_tokens": None
        if machine.energy_per_token_j is None
        else 1e6 * machine.energy_per_token_j,
        "power_mean_w": machine.power_mean_w,
        "power_max_w": machine.power_max_w,
        "idle_w": idle_w,
        "sm_clock_mhz": machine.sm_clock_median_mhz,
        "temperature_c": machine.temperature_max_c,
        "throttle": machine.throttle_reasons,
        "cpu_wait_pct": machine.cpu_wait_pct,
        "not_offered": machine.not_offered,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:pythia-1.4b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", choices=("eager", "graph"), default="graph")
    parser.add_argument("--tokens", type=int, default=2000, help="n")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="a CPU slot, where RAPL can be read")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/energy.parquet"))
    options = parser.parse_args()

    host = DeviceHost("benchmark/0", 8 * 2**30 if options.cpu else None)
    try:
        device = host.describe()
        attempts = [
            run(host, options, length, repeat)
            for repeat in range(options.repeats)
            for length in (options.tokens, 2 * options.tokens)
        ]
    finally:
        host.close()
    table = pl.DataFrame(
        [row(attempt, device.idle_power_w) for attempt in attempts], infer_schema_length=None
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.out)
    with pl.Config(tbl_cols=-1, tbl_width_chars=320, fmt_str_lengths=60):
        print(table)
    for column in ("decode_j", "above_idle_j", "decode_s"):
        once, twice = (
            table.filter(tokens=length)[column].drop_nulls().to_list()
            for length in (options.tokens, 2 * options.tokens)
        )
        if once and twice:
            print(f"{column}: 2n over n = {statistics.median(twice) / statistics.median(once):.3f}")


if __name__ == "__main__":
    main()
