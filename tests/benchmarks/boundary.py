"""Predicted against measured boundaries, on this machine's device: `python -m tests.benchmarks.boundary`.

Drives one device directly (no Ray): real processes, real limits, the search as in a sweep. Prints a table,
writes it as Parquet. Without a card it runs the pocket model under three data limits; on a card for example

    python -m tests.benchmarks.boundary --model random:pythia-2.8b --dtype bfloat16 --batch 1 \\
        --budgets 8GiB,12GiB,16GiB,24GiB,device --engines eager,graph --chunk 512

`--reach prefill`: probes read all but their last tokens as a chunked prompt. `--reach decode,prefill` answers each
question both ways, to hold one against the other.
"""

import argparse
import functools
import time
from pathlib import Path

import polars as pl

from orchestrator.boundary.question import questions
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.duration import predict_seconds
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.spec import SweepSpec, parse_bytes
from orchestrator.tables.boundaries import boundary_frame
from orchestrator.tables.boundary_rows import BoundaryRow, boundaries
from tests.orchestrator.boundary.searching import search
from workers.attempt import Attempt, Device
from workers.cell import Cell, Lease
from workers.host.device_host import DeviceHost
from workers.meters.nvml import NoDevice

_CPU_SLOT = 4 * 2**30
_COLUMNS = (
    *("mode", "engine", "phase", "prefill_reach", "budget_bytes", "batch_size", "last_ok", "first_oom"),
    *(
        "first_oom_index",
        "confirmed_ok",
        "confirmed_oom",
        "censored",
        "predicted",
        "error_pct",
        "bytes_per_token",
        "analytic_bytes_per_token",
    ),
    *("probes", "seconds"),
)


def main() -> None:
    arguments = _arguments()
    host = _open(arguments.cpu)
    try:
        device = host.describe()
        specs = [
            _spec(arguments, budget, reach)
            for budget in _list(arguments.budgets)
            for reach in _list(arguments.reach)
        ]
        started = time.monotonic()
        rows = [row for spec in specs for row in _answer(spec, host, device, arguments.verbose)]
    finally:
        host.close()
    table = boundary_frame([row for row, _ in rows])
    table = table.with_columns(pl.Series("seconds", [seconds for _, seconds in rows]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(arguments.out)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, tbl_hide_dataframe_shape=True):
        print(table.select(_COLUMNS))
    print(f"{device.kind}, {arguments.model}, {arguments.dtype}: {time.monotonic() - started:.0f} s in all")
    print(f"written to {arguments.out}")


def _answer(
    spec: SweepSpec, host: DeviceHost, device: Device, verbose: bool
) -> list[tuple[BoundaryRow, float]]:
    """Each question's row and the seconds that its probes took."""
    attempts: list[Attempt] = []
    seconds = []
    run = functools.partial(_run, host, ModelShapes(), DeviceProfile.of(device), verbose)
    for question in questions(spec):
        began = time.monotonic()
        attempts += search(question, device, run)
        seconds.append(time.monotonic() - began)
    return list(zip(boundaries(spec, attempts), seconds, strict=True))


def _run(host: DeviceHost, shapes: ModelShapes, profile: DeviceProfile, verbose: bool, cell: Cell) -> Attempt:
    target, draft = shapes.of(cell)
    assert target is not None, shapes.unknown
    limit_s = 600 + 20 * predict_seconds(cell, target, draft, profile)
    lease = Lease(
        lease_id=f"{cell.cell_id}.1", cell=cell, attempt=1, time_limit_s=limit_s, stall_timeout_s=limit_s
    )
    attempt = host.run(lease)
    if verbose:
        failure = attempt.failure
        message = failure.error_message.splitlines()[0][:160] if failure and failure.error_message else ""
        print(
            f"{cell.mode} {cell.engine} {cell.budget} prompt {cell.prompt_tokens} length {cell.length}: "
            f"{attempt.outcome} {attempt.duration_s:.1f} s, context {attempt.context_bytes}, "
            f"device {attempt.peak_device_bytes}, reserved {attempt.measured.peak_reserved_bytes}, "
            f"allocated {attempt.measured.peak_allocated_bytes} {message}",
            flush=True,
        )
    return attempt


def _spec(arguments: argparse.Namespace, budget: str, reach: str) -> SweepSpec:
    fields = {
        "name": "boundary-benchmark",
        "models": [{"target": arguments.model, "dtype": arguments.dtype}],
        "modes": _list(arguments.modes),
        "engines": _list(arguments.engines),
        "prompt_tokens": arguments.prompt,
        "batch_sizes": arguments.batch,
        "budgets": [parse_bytes(budget)],
        "boundary": {
            "resolution": arguments.resolution,
            "max_length": arguments.max_length,
            "confirm": arguments.confirm,
            "phases": _list(arguments.phases),
            "prefill_chunk": arguments.chunk,
            "reach": reach,
        },
    }
    if arguments.draft:
        fields["models"][0]["draft"] = arguments.draft  # type: ignore[index]
    return SweepSpec.model_validate(fields)


def _open(cpu: bool) -> DeviceHost:
    if not cpu:
        try:
            return DeviceHost("card")
        except NoDevice:
            print("no card: a CPU slot and its data limit")
    return DeviceHost("cpu", cpu_total_bytes=_CPU_SLOT)


def _list(text: str) -> list[str]:
    return text.split(",")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="a CPU slot, also where there is a card")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--draft")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--modes", default="baseline,streaming")
    parser.add_argument("--engines", default="eager")
    parser.add_argument("--budgets", default="40MiB,48MiB,56MiB")
    parser.add_argument("--phases", default="decode")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument("--confirm", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--reach", default="prefill", help="decode, prefill, or both: do they agree?")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/boundary.parquet"))
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
