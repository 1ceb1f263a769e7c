"""How long do tables and report of a very large run take? `python -m tests.benchmarks.tables [attempts] [folder]`

Writes a journal of 100,000 attempts with 500 samples each (50 million), ten attempts a part, as a fleet of a
thousand devices leaves it, then times tables and report in a fresh process. Prints the figures and writes them to
`tables-benchmark.parquet` in the folder.
"""

import dataclasses
import random
import resource
import subprocess
import sys
import tempfile
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


def measure(folder: Path) -> None:
    start = time.perf_counter()
    render(folder)
    wall_s = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lengths = {
        name: pl.scan_parquet(folder / "tables" / f"{name}.parquet").select(pl.len()).collect().item()
        for name in ("attempts", "samples")
    }
    frame = pl.DataFrame(
        {
            **lengths,
            "parts": len(list((folder / "journal").glob("*.parquet"))),
            "tables_and_report_s": wall_s,
            "processor_s": usage.ru_utime + usage.ru_stime,
            "peak_memory_bytes": usage.ru_maxrss * 1024,
        }
    )
    frame.write_parquet(folder / "tables-benchmark.parquet")
    print(frame)


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]))
        return
    attempts = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="oomline-tables-"))
    start = time.perf_counter()
    write_journal(folder, attempts)
    print(f"journal of {attempts:,} attempts in {folder}: {time.perf_counter() - start:.0f} s", flush=True)
    subprocess.run([sys.executable, "-m", "tests.benchmarks.tables", "measure", str(folder)], check=True)


if __name__ == "__main__":
    main()
