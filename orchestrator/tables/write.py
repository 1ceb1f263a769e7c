"""Journal -> `tables/*.parquet`: every table again, from the journal alone, streamed where it is long."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

from orchestrator.boundary.rows import BoundaryRow, boundaries
from orchestrator.journal.folder import Run
from orchestrator.journal.record import LIGHT_SCHEMA, to_attempts
from orchestrator.spec import SweepSpec
from orchestrator.tables.attempts import attempts, samples, steps
from orchestrator.tables.boundaries import boundary_frame
from orchestrator.tables.quality import quality
from orchestrator.tables.summary import summary


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that fit in memory, whole; `rows`: the journal's winners, for the series of single attempts."""

    attempts: pl.DataFrame
    summary: pl.DataFrame
    quality: pl.DataFrame
    boundaries: list[BoundaryRow]
    duplicates: pl.DataFrame
    rows: pl.LazyFrame


@contextmanager
def write_tables(run: Run) -> Iterator[Tables]:
    """Write every table into the run folder and hand the short ones on. Raises `SchemaTooNew`, `StoreError`."""
    with run.journal.view() as view, run.store.scratch() as scratch:
        long = {"samples": samples(view.rows), "steps": steps(view.rows)}
        for name, frame in long.items():
            frame.sink_parquet(scratch / f"{name}.parquet", compression="lz4", statistics=False)
        table = attempts(view.rows).collect()
        tables = Tables(
            attempts=table,
            summary=summary(table.lazy()).collect(),
            quality=quality(view.rows).collect(),
            boundaries=_boundaries(run.spec, view.rows),
            duplicates=view.duplicates,
            rows=view.rows,
        )
        boundary_frame(tables.boundaries).write_parquet(scratch / "boundaries.parquet")
        for name in ("attempts", "summary", "quality", "duplicates"):
            getattr(tables, name).write_parquet(scratch / f"{name}.parquet")
        for path in sorted(scratch.iterdir()):
            run.store.adopt(f"tables/{path.name}", path)
        yield tables


def _boundaries(spec: SweepSpec | None, rows: pl.LazyFrame) -> list[BoundaryRow]:
    """Without a sweep file nobody knows what was searched: no rows."""
    if spec is None:
        return []
    light = rows.filter(pl.col("workload") == "generate").select(LIGHT_SCHEMA.names()).collect()
    return boundaries(spec, to_attempts(light.iter_rows(named=True)))
