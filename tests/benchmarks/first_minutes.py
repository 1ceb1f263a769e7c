"""How long a newcomer waits: `python -m tests.benchmarks.first_minutes [OUT.parquet] [--demo]`.

Seconds of the wall and of this machine's processors (of the process and of its children that have ended) for: the
command's help, the driver's import, a small sweep from Enter to its first word, its first cell and its end, the same
command on the finished sweep. `--demo` adds the demo, from Enter to its report. Others on the machine move the wall's
seconds, so the load before each row stands beside it.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

_SMALL = """
name: small
models: [{target: pocket, dtype: float32}]
modes: [baseline]
lengths: [40]
prompt_tokens: 16
"""
_DEMO = Path(__file__).resolve().parents[2] / "jobs" / "sweeps" / "demo.yaml"


def _row(what: str, command: list[str], marks: dict[str, str]) -> list[dict[str, object]]:
    """One row when it has ended, and one when the first line that holds each of `marks` was printed. `marks`: text by name."""
    load, began, used = os.getloadavg()[0], time.perf_counter(), _processor_s()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert child.stdout is not None
    rows: list[dict[str, object]] = []
    left = dict(marks)
    for line in child.stdout:
        for name in [name for name, text in left.items() if text in line]:
            del left[name]
            rows.append(_figures(f"{what}, {name}", load, time.perf_counter() - began, None))
    if (status := child.wait()) != 0:
        raise SystemExit(f"{' '.join(command)}: exit status {status}")
    return [*rows, _figures(what, load, time.perf_counter() - began, _processor_s() - used)]


def _figures(what: str, load: float, wall_s: float, processor_s: float | None) -> dict[str, object]:
    return {"what": what, "wall_s": wall_s, "processor_s": processor_s, "load_before": load}


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    options = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    jobs = [sys.executable, "-m", "jobs"]
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch, "small.yaml")
        spec.write_text(_SMALL)
        small = [*jobs, "run", str(spec), "--out", f"{scratch}/small"]
        marks = {"first word": "small", "first cell": "· ok ·"}
        rows = [
            *_row("help", [*jobs, "--help"], {}),
            *_row("the driver's import", [sys.executable, "-c", "import jobs.run"], {}),
            *_row("a small sweep", small, marks),
            *_row("the same, finished", small, {}),
        ]
        if "--demo" in sys.argv:
            rows += _row(
                "demo", [*jobs, "run", str(_DEMO), "--out", f"{scratch}/demo"], {"first word": "demo"}
            )
    table = pl.DataFrame(rows)
    with pl.Config(tbl_rows=-1, fmt_str_lengths=60, float_precision=2):
        print(table)
    if options:
        table.write_parquet(options[0])


if __name__ == "__main__":
    main()
