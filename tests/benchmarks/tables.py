"""The part of `tests.benchmarks.fleet` that asks how long tables and report of a very large run take.

Writes a journal of 100,000 attempts with 500 samples each (50 million), ten attempts a part, as a fleet of a
thousand devices leaves it, then times tables and report in a fresh process.
`python -m tests.benchmarks.tables FOLDER` times them again for a run folder that is there.
"""

import dataclasses
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from tests.orchestrator.fake_run import MiB, attempt_of, demo_spec
from workers.attempt import Sample

SAMPLES, PER_PART = 500, 10
_SHAPE = {
    "prompt_tokens": [64, 128, 256, 512, 1024],
    "budgets": [size * MiB for size in (48, 56, 64, 80, 96)],
}
_CELLS_PER_REPEAT = 4 * 5 * 5 * 5


def write_journal(folder: Path, attempts: int) -> None:
    spec = demo_spec(repeats=-(-attempts // _CELLS_PER_REPEAT), **_SHAPE)
    cells, templates, rng = expand(spec)[:attempts], {}, random.Random(0)
    with open_run(folder, spec) as run:
        for number in range(0, attempts, PER_PART):
            records = []
            for cell in cells[number : number + PER_PART]:
                key = dataclasses.replace(cell, repeat=0)
                if key not in templates:
                    whole = attempt_of(key, 0)
                    samples = tuple(
                        Sample(
                            t_s=0.04 * k + rng.random() / 50,
                            device_used_bytes=rng.randrange(64 * MiB),
                            process_used_bytes=rng.randrange(256 * MiB),
                        )
                        for k in range(SAMPLES)
                    )
                    templates[key] = dataclasses.replace(
                        whole, samples=samples, steps=whole.steps[:20], output_ids=whole.output_ids[:500]
                    )
                attempt = dataclasses.replace(
                    templates[key], cell=cell, lease_id=f"{cell.cell_id}.1", started_at=1.79e9 + number / 100
                )
                records.append(Record(run.run_id, attempt, 30 * MiB))
            run.journal.append(records)
        run.finish("finished")


def measure(folder: Path, attempts: int) -> list[dict[str, object]]:
    """The figures of a fresh process; the time it takes to write the journal is none of them."""
    write_journal(folder, attempts)
    command = [sys.executable, "-m", "tests.benchmarks.tables", str(folder)]
    return [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)]


def main() -> None:
    folder = Path(sys.argv[1])
    start = time.perf_counter()
    render(folder)
    wall_s = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lengths = {
        name: pl.scan_parquet(folder / "tables" / f"{name}.parquet").select(pl.len()).collect().item()
        for name in ("attempts", "samples")
    }
    figures = {
        "case": f"tables and report, {lengths['attempts']} attempts",
        "samples": lengths["samples"],
        "parts": len(list((folder / "journal").glob("*.parquet"))),
        "wall_s": wall_s,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_gib": usage.ru_maxrss / 2**20,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
