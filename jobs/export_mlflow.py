"""A run in the layout of an MLflow file store: an experiment with one MLflow run for each cell.

The layout is that of MLflow's `FileStore`: `mlflow ui --backend-store-uri OUT` shows it.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from jobs.api.recorded import Run
from orchestrator import axes
from orchestrator.tables.sink import writing
from workers.outcome import Outcome

_EXPERIMENT = "1"
#: MLflow's `RunStatus` and `SourceType.LOCAL`.
_FINISHED, _FAILED, _LOCAL = 3, 4, 4
#: What a cell is, beside the axes.
_PARAMS = ("repeat", "seed", "workload", "device_kind")
_TAGS = ("outcome", "phase", "cell_id", "device_uuid", "node", "error_type", "error_message")


def write_mlflow(run: Run, out: Path) -> Iterator[Path]:
    """Write the last attempt at each cell: axes as params, numbers as metrics, memory along the tokens as a metric's
    history by step. Return the folder of each MLflow run."""
    attempts = run.attempts.filter("final").sort("started_at")
    name = run.spec.name if run.spec is not None else Path(run.folder).name
    began = _milliseconds(attempts["started_at"].min())
    experiment = out / _EXPERIMENT
    steps = {
        (cell, attempt): frame
        for (cell, attempt), frame in run.steps.collect().group_by("cell_id", "attempt", maintain_order=True)
    }
    with writing():
        _write_yaml(
            experiment / "meta.yaml",
            {
                "artifact_location": experiment.resolve().as_uri(),
                "creation_time": began,
                "experiment_id": _EXPERIMENT,
                "last_update_time": began,
                "lifecycle_stage": "active",
                "name": name,
            },
        )
    for row in attempts.iter_rows(named=True):
        with writing():
            written = _write_run(experiment, row, steps.get((row["cell_id"], row["attempt"])))
        yield written


def _write_run(experiment: Path, row: dict[str, Any], steps: pl.DataFrame | None) -> Path:
    run_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{row['run_id']}/{row['lease_id']}").hex
    folder = experiment / run_id
    began = _milliseconds(row["started_at"])
    ended = began + int((row["duration_s"] or 0) * 1000)
    params = {
        column: row[column] for column in (*axes.names(*axes.Role), *_PARAMS) if row.get(column) is not None
    }
    metrics = {
        column: value
        for column, value in row.items()
        if column not in params
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and column != "attempt"
    }
    _write_yaml(
        folder / "meta.yaml",
        {
            "artifact_uri": (folder / "artifacts").resolve().as_uri(),
            "end_time": ended,
            "entry_point_name": "",
            "experiment_id": _EXPERIMENT,
            "lifecycle_stage": "active",
            "run_id": run_id,
            "run_name": f"{row['mode']} {row['length']} {row['repeat']}",
            "run_uuid": run_id,
            "source_name": "oomline",
            "source_type": _LOCAL,
            "source_version": "",
            "start_time": began,
            "status": _FINISHED if Outcome(row["outcome"]).is_expected else _FAILED,
            "tags": [],
            "user_id": "",
        },
    )
    (folder / "artifacts").mkdir()
    _write_files(folder / "params", params)
    _write_files(
        folder / "tags",
        {"mlflow.runName": f"{row['mode']} {row['length']}"}
        | {column: row[column] for column in _TAGS if row.get(column) is not None},
    )
    lines = {name: [f"{ended} {value} 0"] for name, value in metrics.items()}
    if steps is not None:
        for column in ("allocated_bytes", "reserved_bytes", "kv_cache_bytes"):
            known = steps.drop_nulls(column)
            if known.height:
                lines[f"step_{column}"] = [
                    f"{began + int(seconds * 1000)} {value} {index}"
                    for index, seconds, value in known.select("token_index", "t_s", column).iter_rows()
                ]
    _write_files(folder / "metrics", {name: "\n".join(found) for name, found in lines.items()})
    return folder


def _milliseconds(when: Any) -> int:
    return 0 if when is None else int(when.timestamp() * 1000)


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=True), encoding="utf-8")


def _write_files(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir()
    for name, value in values.items():
        (folder / name).write_text(str(value), encoding="utf-8")
