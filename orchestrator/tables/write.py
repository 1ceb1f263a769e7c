"""Journal -> `tables/*.parquet`: every table again, from the journal alone, streamed where it is long."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

from orchestrator.journal.errors import StoreError
from orchestrator.journal.folder import RecordedRun
from orchestrator.journal.journal import View
from orchestrator.journal.record import to_attempts
from orchestrator.journal.store import FULL
from orchestrator.spec import SweepSpec
from orchestrator.tables.attempts import attempts, devices, duplicates, samples, steps
from orchestrator.tables.boundaries import boundary_frame
from orchestrator.tables.boundary_rows import BoundaryRow, boundaries
from orchestrator.tables.quality import quality
from orchestrator.tables.retrieval import effective_length, retrieval
from orchestrator.tables.sink import WriteFailed, sink
from orchestrator.tables.speed_rows import measures_speed
from orchestrator.tables.summary import summary
from workers.modes import RETRIEVE, SCORE


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that fit in memory, and the journal's `view` for the series of single attempts (`attempts.row`)."""

    attempts: pl.DataFrame
    summary: pl.DataFrame
    quality: pl.DataFrame
    retrieval: pl.DataFrame
    effective_length: pl.DataFrame
    boundaries: list[BoundaryRow]
    view: View


@contextmanager
def derive(run: RecordedRun) -> Iterator[Tables]:
    """The short tables of a run, in memory. Nothing is written. Raises `SchemaTooNew`."""
    with run.journal.view() as view:
        table = attempts(view)
        scored, asked = ((table["workload"] == name).any() for name in (SCORE.name, RETRIEVE.name))
        found = retrieval(view.rows if asked else view.rows.limit(0)).collect()
        yield Tables(
            attempts=table,
            summary=summary(table.lazy()).collect(),
            quality=quality(view.rows if scored else view.rows.limit(0)).collect(),
            retrieval=found,
            effective_length=effective_length(found),
            boundaries=_boundaries(run.spec, view.light),
            view=view,
        )


@contextmanager
def write_tables(run: RecordedRun) -> Iterator[Tables]:
    """Every table into the run folder, and the short ones handed on. Raises `SchemaTooNew`, `StoreError`."""
    with derive(run) as tables, run.store.scratch() as scratch:
        short = {
            "attempts": tables.attempts.drop("row"),
            "summary": tables.summary,
            "quality": tables.quality,
            "retrieval": tables.retrieval,
            "effective_length": tables.effective_length,
            "boundaries": boundary_frame(tables.boundaries),
            "duplicates": duplicates(tables.view),
        }
        long = {"samples": samples(tables.view.rows), "steps": steps(tables.view.rows)}
        long["devices"] = devices(tables.view.rows)
        try:
            for name, frame in short.items():
                with sink(scratch / f"{name}.parquet") as file:
                    frame.write_parquet(file)
            for name, rows in long.items():
                with sink(scratch / f"{name}.parquet") as file:
                    rows.sink_parquet(file, compression="lz4", statistics=False)
        except WriteFailed as failed:
            remedy = "make room" if failed.cause.errno in FULL else "give a folder that can"
            raise StoreError(
                f"{run.store.url}: the tables cannot be written ({failed}): {remedy}"
            ) from failed
        except OSError as error:
            raise StoreError(f"{run.store.url}: its journal cannot be read ({error})") from error
        for path in sorted(scratch.iterdir()):
            run.store.adopt(f"tables/{path.name}", path)
        yield tables


#: All that a boundary is read from; an attempt's other columns would be rebuilt for nothing.
_FOR_BOUNDARIES = (
    *("cell_json", "lease_id", "attempt", "outcome", "phase", "started_at", "duration_s", "context_bytes"),
    *("device_kind", "device_uuid", "node", "device_total_bytes", "device_reserve_bytes", "driver_version"),
    *("per_process_memory_visible", "new_tokens", "kv_cache_bytes", "error_type", "error_message"),
    *(
        "oom_token_index",
        "oom_prompt_tokens",
        "oom_allocated_bytes",
        "oom_reserved_bytes",
        "peak_device_bytes",
    ),
)


def _boundaries(spec: SweepSpec | None, light: pl.DataFrame) -> list[BoundaryRow]:
    """Without a sweep file nobody knows what was searched: no rows."""
    if spec is None:
        return []
    return boundaries(spec, to_attempts(light.filter(measures_speed()).select(_FOR_BOUNDARIES)))
