"""The journal's row: one attempt, flat, with its series as lists. One schema, one way in, one way out.

Units are in the names; null means not available, never 0. Series (samples, steps, results) are parallel list
columns with a common prefix, so that a query that does not want them never reads them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, get_type_hints

import polars as pl

from orchestrator.axes import AXES, read
from orchestrator.journal.columns import column_type, columns_of
from orchestrator.journal.storable import storable, unicode
from workers.attempt import Attempt, Device, DeviceShare, Failure, InEffect, Measured, Phase, Sample, Step
from workers.cell import Cell, from_json, to_json
from workers.machine_state import MachineState
from workers.modes import WORKLOADS
from workers.outcome import Outcome

#: Raised by one whenever a column changes its meaning or type; a new nullable column needs no new version.
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """`predicted_peak_bytes`: what the memory model said before the attempt, None where it does not apply. `predicted_by`:
    whence, rehearsal or formula.
    """

    run_id: str
    attempt: Attempt
    predicted_peak_bytes: int | None = None
    predicted_by: str | None = None


#: Which field of a device keeps its name as a column; every other one gets the prefix `device_`.
_OF_NODE = ("node", "driver_version", "per_process_memory_visible")
_DEVICE_FIELDS = {name if name in _OF_NODE else f"device_{name}": name for name in columns_of(Device)}
#: `cache_class` has no asked twin among the axes and keeps its name.
_EFFECT_FIELDS = {
    name if name == "cache_class" else f"effective_{name}": name for name in columns_of(InEffect)
}

_CELL_COLUMNS: dict[str, Any] = {
    "cell_id": pl.String,
    "cell_json": pl.String,
    **{axis.name: column_type(axis.hint) for axis in AXES},
}
_ATTEMPT_COLUMNS = columns_of(Attempt)
_DEVICE_COLUMNS = {column: columns_of(Device)[name] for column, name in _DEVICE_FIELDS.items()}
_MEASURED_COLUMNS = columns_of(Measured)
_EFFECT_COLUMNS = {column: columns_of(InEffect)[name] for column, name in _EFFECT_FIELDS.items()}
_MACHINE_COLUMNS = columns_of(MachineState)
_FAILURE_COLUMNS = columns_of(Failure)
#: Series of an attempt: prefix of its columns, type of its items.
_SERIES: dict[str, tuple[str, type]] = {
    "samples": ("sample_", Sample),
    "steps": ("step_", Step),
    "devices": ("rank_", DeviceShare),
}
#: The same of the results of each workload that has any.
_RESULTS: dict[str, tuple[str, type]] = {
    name: (workload.prefix, workload.result) for name, workload in WORKLOADS.items() if workload.result
}

#: Everything of an attempt but its series and its snapshot: what resuming, boundaries and the tables read.
LIGHT_SCHEMA = pl.Schema(
    {
        "run_id": pl.String,
        **_CELL_COLUMNS,
        **_ATTEMPT_COLUMNS,
        **_DEVICE_COLUMNS,
        **_MEASURED_COLUMNS,
        **_EFFECT_COLUMNS,
        **_MACHINE_COLUMNS,
        **{name: dtype for name, dtype in _FAILURE_COLUMNS.items() if name != "memory_snapshot"},
        "predicted_peak_bytes": pl.Int64,
        "predicted_by": pl.String,
        "left_out": pl.String,  # what a model or a file said that no column can hold: `column: value; ...`
    }
)
_SERIES_COLUMNS: dict[str, Any] = {
    prefix + name: pl.List(dtype)
    for prefix, kind in (*_SERIES.values(), *_RESULTS.values())
    for name, dtype in columns_of(kind).items()
}
SCHEMA = pl.Schema(
    {**LIGHT_SCHEMA, "memory_snapshot": pl.Binary, "output_ids": pl.List(pl.Int32), **_SERIES_COLUMNS}
)
SAMPLE_COLUMNS, STEP_COLUMNS, RANK_COLUMNS = (
    {prefix + name: name for name in columns_of(kind)} for prefix, kind in _SERIES.values()
)
#: Workload -> the columns of its results, each with the name of its field.
RESULT_COLUMNS = {
    workload: {prefix + name: name for name in columns_of(kind)}
    for workload, (prefix, kind) in _RESULTS.items()
}


def to_frame(records: Sequence[Record]) -> pl.DataFrame:
    """One row per record, columns `SCHEMA`. Raises TypeError, OverflowError or UnicodeError for a value that its
    column cannot hold."""
    return _frame([_row(record) for record in records])


def to_frame_of_what_fits(records: Sequence[Record]) -> pl.DataFrame:
    """As `to_frame`, but a value that its column cannot hold is null, and `left_out` of its row says so."""
    try:
        return to_frame(records)
    except (TypeError, OverflowError, UnicodeError):
        return _frame([_fitting(_row(record)) for record in records])


def _frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    # By columns, which Polars holds to their types; rows it would coerce in silence, a fraction to an integer.
    return pl.DataFrame({name: [row[name] for row in rows] for name in SCHEMA}, schema=SCHEMA)


def _fitting(row: dict[str, Any]) -> dict[str, Any]:
    kept, left_out = storable(row, SCHEMA)
    return kept | {"left_out": "; ".join(left_out) or None}


def _row(record: Record) -> dict[str, Any]:
    attempt = record.attempt
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row["run_id"] = record.run_id
    row["predicted_peak_bytes"] = record.predicted_peak_bytes
    row["predicted_by"] = record.predicted_by
    row |= cell_columns(attempt.cell)
    row |= {name: getattr(attempt, name) for name in _ATTEMPT_COLUMNS}
    row |= {name: getattr(attempt.measured, name) for name in _MEASURED_COLUMNS}
    if attempt.device is not None:
        row |= {column: getattr(attempt.device, name) for column, name in _DEVICE_FIELDS.items()}
    if attempt.measured.in_effect is not None:
        effect = attempt.measured.in_effect
        row |= {column: getattr(effect, name) for column, name in _EFFECT_FIELDS.items()}
    if attempt.machine is not None:
        row |= {name: getattr(attempt.machine, name) for name in _MACHINE_COLUMNS}
    if attempt.failure is not None:
        row |= {name: getattr(attempt.failure, name) for name in _FAILURE_COLUMNS}
    row["output_ids"] = attempt.output_ids
    for series, (prefix, kind) in _SERIES.items():
        row |= _columns(getattr(attempt, series), prefix, kind)
    for workload, (prefix, kind) in _RESULTS.items():
        row |= _columns(attempt.results if attempt.cell.workload == workload else (), prefix, kind)
    return {name: unicode(value) if isinstance(value, str) else value for name, value in row.items()}


def _columns(items: Sequence[Any], prefix: str, kind: type) -> dict[str, Any]:
    return {prefix + name: list(map(attrgetter(name), items)) for name in columns_of(kind)}


def cell_columns(cell: Cell) -> dict[str, Any]:
    """What a cell says about itself, as columns: a column per axis; `cell_json` holds all of it."""
    return {
        "cell_id": cell.cell_id,
        "cell_json": json.dumps(to_json(cell), sort_keys=True),
        **read(cell),
    }


def to_attempts(frame: pl.DataFrame) -> list[Attempt]:
    """The inverse of `to_frame`. A column that `frame` lacks leaves its field at the default; the fields of an
    attempt and of its device that have none must be there.
    """
    cells = {text: from_json(json.loads(text)) for text in frame["cell_json"].unique()}
    there = set(frame.columns)
    parts = {
        "cell": [cells[text] for text in frame["cell_json"]],
        "device": _built(
            Device, frame, {c: name for c, name in _DEVICE_FIELDS.items() if c in there}, "device_kind"
        ),
        "measured": _measured(frame),
        "outcome": [Outcome(value) for value in frame["outcome"]],
        "phase": [Phase(value) for value in frame["phase"]],
        **{name: frame[name].to_list() for name in _ATTEMPT_COLUMNS if name in there - {"outcome", "phase"}},
    }
    if "error_type" in there:
        parts["failure"] = _built(Failure, frame, {name: name for name in _FAILURE_COLUMNS if name in there})
    if "host_cores" in there:
        machine = {name: name for name in _MACHINE_COLUMNS if name in there}
        parts["machine"] = _built(MachineState, frame, machine, "host_cores")
    if "output_ids" in there:
        parts["output_ids"] = [tuple(ids or ()) for ids in frame["output_ids"].to_list()]
        parts |= {name: _series(frame, *about) for name, about in _SERIES.items()}
        results = {workload: _series(frame, *about) for workload, about in _RESULTS.items()}
        parts["results"] = [
            results[cell.workload][row] if cell.workload in results else ()
            for row, cell in enumerate(parts["cell"])
        ]
    return [Attempt(**dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)]


def _measured(frame: pl.DataFrame) -> list[Measured]:
    columns = {name: frame[name].to_list() for name in _MEASURED_COLUMNS if name in frame.columns}
    if "cache_class" in frame.columns:
        columns["in_effect"] = _built(InEffect, frame, _EFFECT_FIELDS)
    if not columns:
        return [Measured()] * frame.height
    return [
        Measured(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def _built(kind: type, frame: pl.DataFrame, fields: Mapping[str, str], present: str = "") -> list[Any]:
    """One `kind` a row, None where the column `present` (default: the first) is null. `fields`: by column. Equal
    rows share one.
    """
    known: dict[Any, Any] = {}
    built = []
    there = frame[present or next(iter(fields))].is_not_null()
    for row, is_there in zip(frame.select(fields.keys()).iter_rows(), there, strict=True):
        if is_there and row not in known:
            known[row] = kind(**dict(zip(fields.values(), row, strict=True)))
        built.append(known[row] if is_there else None)
    return built


def _series(frame: pl.DataFrame, prefix: str, kind: type) -> list[tuple[Any, ...]]:
    columns = columns_of(kind)
    hints = get_type_hints(kind)
    lists = [_enumerated(hints[name], frame[prefix + name].to_list()) for name in columns]
    return [
        tuple(
            kind(**dict(zip(columns, item, strict=True)))
            for item in zip(*(values or () for values in row), strict=True)
        )
        for row in zip(*lists, strict=True)
    ]


def _enumerated(hint: Any, lists: list[Any]) -> list[Any]:
    if not (isinstance(hint, type) and issubclass(hint, Enum)):
        return lists
    return [values and [hint(value) for value in values] for values in lists]
