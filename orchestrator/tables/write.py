"""Journal -> `tables/*.parquet`: every table again, from the journal alone, streamed where it is long."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

from orchestrator.boundary.rows import BoundaryRow, boundaries
from orchestrator.journal.folder import Run
from orchestrator.journal.journal import View
from orchestrator.journal.record import to_attempts
from orchestrator.spec import SweepSpec
from orchestrator.tables.attempts import attempts, samples, steps
from orchestrator.tables.boundaries import boundary_frame
from orchestrator.tables.quality import quality
from orchestrator.tables.summary import summary


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that fit in memory, and the journal's `view` for the series of single attempts (`attempts.row`)."""

    attempts: pl.DataFrame
    summary: pl.DataFrame
    quality: pl.DataFrame
    boundaries: list[BoundaryRow]
    view: View


@contextmanager
def write_tables(run: Run) -> Iterator[Tables]:
    """Write every table into the run folder and hand the short ones on. Raises `SchemaTooNew`, `StoreError`."""
    with run.journal.view() as view, run.store.scratch() as scratch:
        table = attempts(view.light, view.rows)
        tables = Tables(
            attempts=table,
            summary=summary(table.lazy()).collect(),
            quality=quality(view.rows).collect(),
            boundaries=_boundaries(run.spec, view.light),
            view=view,
        )
        boundary_frame(tables.boundaries).write_parquet(scratch / "boundaries.parquet")
        view.duplicates.write_parquet(scratch / "duplicates.parquet")
        table.drop("row").write_parquet(scratch / "attempts.parquet")
        for name in ("summary", "quality"):
            getattr(tables, name).write_parquet(scratch / f"{name}.parquet")
        for name, series in (("samples", samples(view.rows)), ("steps", steps(view.rows))):
            series.sink_parquet(scratch / f"{name}.parquet", compression="lz4", statistics=False)
        for path in sorted(scratch.iterdir()):
            run.store.adopt(f"tables/{path.name}", path)
        yield tables


def _boundaries(spec: SweepSpec | None, light: pl.DataFrame) -> list[BoundaryRow]:
    """Without a sweep file nobody knows what was searched: no rows."""
    if spec is None:
        return []
    return boundaries(spec, to_attempts(light.filter(pl.col("workload") == "generate")))
