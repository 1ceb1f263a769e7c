"""Whether cells that another process disturbed are marked, and quiet ones are not: `python -m tests.benchmarks.hog`.

Equal cells on a CPU slot, in a random order: most of them alone, some beside a hog on the same cores: one that computes, one
that copies memory, one that computes every other 50 ms. A cell was moved where its speed differs by over 10 % from the median
of those without a hog. Two shares: of the cells moved beside a hog that are marked, and of the cells without a hog that are
marked; the second means something on a machine where nothing else runs.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from orchestrator.journal.journal import Journal
from orchestrator.journal.record import Record
from orchestrator.tables.attempts import attempts
from workers.cell import Cell, Lease, ModelRef
from workers.host.device_host import DeviceHost
from workers.modes import Streaming

_MOVED = 0.10
_HOGS = ("computes", "copies", "half")
_PERIOD_S = 0.05


def _hog(kind: str) -> None:
    block = bytearray(64 * 2**20) if kind == "copies" else b""
    while True:
        until = time.monotonic() + _PERIOD_S
        while time.monotonic() < until:
            bytes(block) if kind == "copies" else sum(range(1000))
        if kind == "half":
            time.sleep(_PERIOD_S)


@contextlib.contextmanager
def beside(kind: str | None) -> Iterator[None]:
    """A hog for each core, or none."""
    context = multiprocessing.get_context("spawn")
    hogs = [
        context.Process(target=_hog, args=(kind,), daemon=True) for _ in range(os.cpu_count() or 1) if kind
    ]
    for hog in hogs:
        hog.start()
    if hogs:
        time.sleep(0.5)  # until they have imported what they need
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


def lease(repeat: int, tokens: int) -> Lease:
    cell = Cell(
        model=ModelRef(target="pocket", dtype="float32"),
        mode="streaming",
        engine="eager",
        prompt_tokens=64,
        length=tokens,
        streaming=Streaming(sinks=4, window=64),
        repeat=repeat,
    )
    return Lease(lease_id=f"hog.{repeat}", cell=cell, attempt=1, time_limit_s=600.0, stall_timeout_s=120.0)


def measure(order: list[str | None], tokens: int) -> pl.DataFrame:
    """Run the cells, one after the other, each beside its hog."""
    host = DeviceHost("benchmark/0", 4 * 2**30)
    records = []
    try:
        host.describe()
        for repeat, kind in enumerate(order):
            with beside(kind):
                records.append(Record("hog", host.run(lease(repeat, tokens))))
    finally:
        host.close()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(Path(folder))
        journal.append(records)
        with journal.view() as view:
            table = attempts(view).sort("repeat")
    return table.with_columns(pl.Series("hog", order, dtype=pl.String))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", type=int, default=60, help="cells without a hog")
    parser.add_argument("--each", type=int, default=10, help="cells beside each kind of hog")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/hog.parquet"))
    options = parser.parse_args()

    order = [None] * options.alone + [kind for kind in _HOGS for _ in range(options.each)]
    random.Random(0).shuffle(order)
    table = measure(order, options.tokens)
    usual = table.filter(pl.col("hog").is_null())["tokens_per_s"].median()
    table = table.with_columns(moved=(pl.col("tokens_per_s") / pl.lit(usual) - 1).abs() > _MOVED).select(
        *("hog", "tokens_per_s", "moved", "noisy", "noise_reasons", "ruler_deviation_pct", "cpu_wait_pct"),
        *("host_steal_pct", "host_other_load", "repeat"),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.out)
    by_hog = table.group_by("hog").agg(
        pl.len().alias("cells"),
        pl.col("tokens_per_s").median(),
        pl.col("moved").sum(),
        (pl.col("moved") & pl.col("noisy")).sum().alias("moved_and_marked"),
        pl.col("noisy").sum().alias("marked"),
        pl.col("ruler_deviation_pct").median(),
        pl.col("cpu_wait_pct").median(),
        pl.col("host_other_load").median(),
    )
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=200, fmt_str_lengths=80):
        print(by_hog.sort("hog", nulls_last=False))
        print(table.filter(pl.col("moved") != pl.col("noisy")))
    for where, cells in (("beside", pl.col("hog").is_not_null()), ("without", pl.col("hog").is_null())):
        of_them = table.filter(cells)
        moved = of_them.filter("moved")
        print(
            f"{where} a hog: {of_them.height} cells, {of_them['noisy'].sum()} marked; "
            f"moved by over 10 %: {moved.height}, {moved['noisy'].sum()} of them marked"
        )


if __name__ == "__main__":
    main()
