"""`oomline export`: the tables of a run for other tools."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from jobs.api.recorded import Run
from jobs.api.sweeps import open_run
from jobs.export_mlflow import write_mlflow
from orchestrator.journal.errors import StoreError
from orchestrator.spec_error import SpecError
from orchestrator.tables.sink import WriteFailed, sink, writing

_SHORT = ("attempts", "summary", "boundaries", "quality", "retrieval", "effective_length", "devices")
_LONG = ("samples", "steps")


def export_run(folder: str, out: Path, form: str) -> list[Path]:
    """Write the run's tables into the folder `out` as csv or jsonl, or the run in MLflow's layout. Return what was written.

    A list within a CSV cell is JSON. Tables without rows are left out. Raises `SpecError`: no such format, no run folder,
    a folder `out` that has files in it or cannot be written; `StoreError`: a journal that cannot be read.
    """
    forms: dict[str, Callable[[Run, Path], Iterator[Path]]] = {
        "csv": _write_csv,
        "jsonl": _write_lines,
        "mlflow": write_mlflow,
    }
    if form not in forms:
        raise SpecError(f"--format {form}: there are {', '.join(forms)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"--out {out}: not an empty folder; give another one")
    run = open_run(folder)
    try:
        with writing():
            out.mkdir(parents=True, exist_ok=True)
        return list(forms[form](run, out))
    except WriteFailed as failed:
        raise SpecError(f"--out {out}: {failed}") from None
    except OSError as error:
        raise StoreError(f"{folder}: its journal cannot be read ({error}): give a folder that can") from None


def _tables(run: Run) -> Iterator[tuple[str, pl.LazyFrame]]:
    for name in (*_SHORT, *_LONG):
        frame: pl.DataFrame | pl.LazyFrame = getattr(run, name)
        if not frame.lazy().head(1).collect().is_empty():
            yield name, frame.lazy()


def _write_csv(run: Run, out: Path) -> Iterator[Path]:
    for name, frame in _tables(run):
        path = out / f"{name}.csv"
        schema = frame.collect_schema()
        lists = [column for column, kind in schema.items() if isinstance(kind, pl.List)]
        blobs = [column for column, kind in schema.items() if kind == pl.Binary]
        plain = frame.drop(blobs).with_columns(
            pl.col(column).map_elements(_as_json, return_dtype=pl.String) for column in lists
        )
        with sink(path) as file:
            plain.sink_csv(file)
        yield path


def _as_json(items: pl.Series) -> str:
    return pl.DataFrame({"v": [items]}).write_ndjson().removeprefix('{"v":').removesuffix("}\n")


def _write_lines(run: Run, out: Path) -> Iterator[Path]:
    for name, frame in _tables(run):
        path = out / f"{name}.jsonl"
        blobs = [column for column, kind in frame.collect_schema().items() if kind == pl.Binary]
        with sink(path) as file:
            frame.drop(blobs).sink_ndjson(file)
        yield path
