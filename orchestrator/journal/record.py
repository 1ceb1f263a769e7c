"""The journal's row: one attempt, flat, with its series as lists. One schema, one way in, one way out.

Units are in the names; null means not available, never 0. Series (samples, steps, scores) are parallel list
columns with a common prefix, so that a query that does not want them never reads them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import polars as pl

from orchestrator.journal.storable import storable, unicode
from workers.attempt import Attempt, Device, Failure, InEffect, Measured, Phase, Sample, ScoreBucket, Step
from workers.cell import Cell, from_json, to_json
from workers.outcome import Outcome

#: Raised by one whenever a column changes its meaning or type; a new nullable column needs no new version.
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """`predicted_peak_bytes`: what the memory model said before the attempt, None where it does not apply."""

    run_id: str
    attempt: Attempt
    predicted_peak_bytes: int | None = None


_CELL_COLUMNS: dict[str, Any] = {
    "cell_id": pl.String,
    "cell_json": pl.String,
    "purpose": pl.String,
    "workload": pl.String,
    "model": pl.String,
    "draft": pl.String,
    "mode": pl.String,
    "cache_policy": pl.String,
    "decoder": pl.String,
    "engine": pl.String,
    "dtype": pl.String,
    "attn_implementation": pl.String,
    "trust_remote_code": pl.Boolean,
    "batch_size": pl.Int64,
    "prompt_tokens": pl.Int64,
    "prefill_chunk": pl.Int64,
    "length": pl.Int64,
    "repeat": pl.Int64,
    "seed": pl.Int64,
    "gamma": pl.Int64,
    "acceptance_injected": pl.Float64,
    "repetition_penalty": pl.Float64,
    "sinks": pl.Int64,
    "window": pl.Int64,
    "corpus": pl.String,
    "budget_bytes": pl.Int64,
}
_DEVICE_COLUMNS: dict[str, Any] = {
    "device_kind": pl.String,
    "device_uuid": pl.String,
    "node": pl.String,
    "device_total_bytes": pl.Int64,
    "device_reserve_bytes": pl.Int64,
    "driver_version": pl.String,
    "per_process_memory_visible": pl.Boolean,
}
_ATTEMPT_COLUMNS: dict[str, Any] = {
    "lease_id": pl.String,
    "attempt": pl.Int64,
    "outcome": pl.String,
    "phase": pl.String,
    "started_at": pl.Float64,
    "duration_s": pl.Float64,
    "peak_device_bytes": pl.Int64,
    "peak_process_bytes": pl.Int64,
    "context_bytes": pl.Int64,
    "sample_interval_p50_s": pl.Float64,
    "sample_interval_p99_s": pl.Float64,
    "first_model_call_s": pl.Float64,
    "device_dirty": pl.String,
}
_MEASURED_COLUMNS: dict[str, Any] = {
    "new_tokens": pl.Int64,
    "ttft_s": pl.Float64,
    "tokens_per_s": pl.Float64,
    "tpot_p50_s": pl.Float64,
    "tpot_p95_s": pl.Float64,
    "tpot_p99_s": pl.Float64,
    "tokens_per_step": pl.Float64,
    "acceptance_rate": pl.Float64,
    "draft_step_s": pl.Float64,
    "verify_step_s": pl.Float64,
    "load_s": pl.Float64,
    "load_was_warm": pl.Boolean,
    "prepare_s": pl.Float64,
    "prefill_s": pl.Float64,
    "decode_s": pl.Float64,
    "weights_bytes": pl.Int64,
    "kv_cache_bytes": pl.Int64,
    "peak_allocated_bytes": pl.Int64,
    "peak_reserved_bytes": pl.Int64,
    "num_alloc_retries": pl.Int64,
    "eos_at": pl.Int64,
    "prompt_sha256": pl.String,
    "output_sha256": pl.String,
    "max_positions": pl.Int64,
    "text_head": pl.String,
    "text_tail": pl.String,
}
#: `InEffect`, under the prefix `effective_`; cache_class alone has no asked twin and keeps its name.
_EFFECT_COLUMNS: dict[str, Any] = {
    "cache_class": pl.String,
    "effective_attn_implementation": pl.String,
    "effective_dtype": pl.String,
    "effective_sinks": pl.Int64,
    "effective_window": pl.Int64,
    "effective_gamma": pl.Int64,
    "effective_repetition_penalty": pl.Float64,
}
_FAILURE_COLUMNS: dict[str, Any] = {
    "error_type": pl.String,
    "error_message": pl.String,
    "oom_token_index": pl.Int64,
    "oom_requested_bytes": pl.Int64,
    "oom_free_bytes": pl.Int64,
    "oom_allocated_bytes": pl.Int64,
    "oom_reserved_bytes": pl.Int64,
    "signal": pl.Int64,
    "exit_code": pl.Int64,
    "last_output": pl.String,
    "stack_dump": pl.String,
    "memory_snapshot": pl.Binary,
}
_SERIES: dict[str, tuple[str, type, dict[str, Any]]] = {
    "samples": (
        "sample_",
        Sample,
        {"t_s": pl.Float64, "device_used_bytes": pl.Int64, "process_used_bytes": pl.Int64},
    ),
    "steps": (
        "step_",
        Step,
        {
            "token_index": pl.Int64,
            "t_s": pl.Float64,
            "allocated_bytes": pl.Int64,
            "reserved_bytes": pl.Int64,
            "kv_cache_bytes": pl.Int64,
        },
    ),
    "scores": (
        "score_",
        ScoreBucket,
        {
            "position_start": pl.Int64,
            "position_end": pl.Int64,
            "nll_sum": pl.Float64,
            "num_tokens": pl.Int64,
        },
    ),
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
        **{name: dtype for name, dtype in _FAILURE_COLUMNS.items() if name != "memory_snapshot"},
        "predicted_peak_bytes": pl.Int64,
        "left_out": pl.String,  # what a model or a file said that no column can hold: `column: value; ...`
    }
)
_SERIES_COLUMNS: dict[str, Any] = {
    prefix + name: pl.List(dtype)
    for prefix, _, columns in _SERIES.values()
    for name, dtype in columns.items()
}
SCHEMA = pl.Schema(
    {**LIGHT_SCHEMA, "memory_snapshot": pl.Binary, "output_ids": pl.List(pl.Int32), **_SERIES_COLUMNS}
)
SAMPLE_COLUMNS = {"sample_" + name: name for name in _SERIES["samples"][2]}
STEP_COLUMNS = {"step_" + name: name for name in _SERIES["steps"][2]}
SCORE_COLUMNS = {"score_" + name: name for name in _SERIES["scores"][2]}


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
    row |= cell_columns(attempt.cell)
    row |= {name: getattr(attempt, name) for name in _ATTEMPT_COLUMNS}
    row |= {name: getattr(attempt.measured, name) for name in _MEASURED_COLUMNS}
    if attempt.device is not None:
        row |= {column: getattr(attempt.device, _bare(column)) for column in _DEVICE_COLUMNS}
    if attempt.measured.in_effect is not None:
        effect = attempt.measured.in_effect
        row |= {column: getattr(effect, column.removeprefix("effective_")) for column in _EFFECT_COLUMNS}
    if attempt.failure is not None:
        row |= {name: getattr(attempt.failure, name) for name in _FAILURE_COLUMNS}
    row["output_ids"] = attempt.output_ids
    for series, (prefix, _, columns) in _SERIES.items():
        items = getattr(attempt, series)
        row |= {prefix + name: list(map(attrgetter(name), items)) for name in columns}
    return {name: unicode(value) if isinstance(value, str) else value for name, value in row.items()}


def cell_columns(cell: Cell) -> dict[str, Any]:
    """What a cell says about itself, as columns; `cell_json` holds all of it."""
    mode, speculation, streaming = cell.mode_spec, cell.speculation, cell.streaming
    injected = speculation.acceptance if speculation else None
    return {
        "cell_id": cell.cell_id,
        "cell_json": json.dumps(to_json(cell), sort_keys=True),
        "model": cell.model.target,
        "draft": cell.model.draft,
        "dtype": cell.model.dtype,
        "attn_implementation": cell.model.attn_implementation,
        "trust_remote_code": cell.model.trust_remote_code,
        "cache_policy": str(mode.policy),
        "decoder": str(mode.decoder),
        "sinks": streaming.sinks if streaming else None,
        "window": streaming.window if streaming else None,
        "gamma": speculation.gamma if speculation else None,
        "acceptance_injected": sum(injected) / len(injected) if isinstance(injected, tuple) else injected,
        "budget_bytes": cell.budget,
        **{
            name: getattr(cell, name)
            for name in (
                "purpose",
                "workload",
                "mode",
                "engine",
                "batch_size",
                "prompt_tokens",
                "prefill_chunk",
                "length",
                "repeat",
                "seed",
                "repetition_penalty",
                "corpus",
            )
        },
    }


def to_attempts(frame: pl.DataFrame) -> list[Attempt]:
    """The inverse of `to_frame`. A column that `frame` lacks leaves its field at the default; the fields of an
    attempt that have none, and those of its device, must be there.
    """
    cells = {text: from_json(json.loads(text)) for text in frame["cell_json"].unique()}
    there = set(frame.columns)
    parts = {
        "cell": [cells[text] for text in frame["cell_json"]],
        "device": _built(Device, frame, _DEVICE_COLUMNS, "device_", "device_kind"),
        "measured": _measured(frame),
        "outcome": [Outcome(value) for value in frame["outcome"]],
        "phase": [Phase(value) for value in frame["phase"]],
        **{name: frame[name].to_list() for name in _ATTEMPT_COLUMNS if name in there - {"outcome", "phase"}},
    }
    if "error_type" in there:
        parts["failure"] = _built(Failure, frame, [name for name in _FAILURE_COLUMNS if name in there])
    if "output_ids" in there:
        parts["output_ids"] = [tuple(ids or ()) for ids in frame["output_ids"].to_list()]
        parts |= {name: _series(frame, *about) for name, about in _SERIES.items()}
    return [Attempt(**dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)]


def _measured(frame: pl.DataFrame) -> list[Measured]:
    columns = {name: frame[name].to_list() for name in _MEASURED_COLUMNS if name in frame.columns}
    if "cache_class" in frame.columns:
        columns["in_effect"] = _built(InEffect, frame, _EFFECT_COLUMNS, "effective_")
    if not columns:
        return [Measured()] * frame.height
    return [
        Measured(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def _built(
    kind: type, frame: pl.DataFrame, columns: Iterable[str], prefix: str = "", present: str | None = None
) -> list[Any]:
    """One `kind` a row from its columns, None where the column `present` (default: the first) is null. Equal rows
    share one.
    """
    columns = list(columns)
    fields = [column.removeprefix(prefix) for column in columns]
    known: dict[Any, Any] = {}
    built = []
    there = frame[present or columns[0]].is_not_null()
    for row, is_there in zip(frame.select(columns).iter_rows(), there, strict=True):
        if is_there and row not in known:
            known[row] = kind(**dict(zip(fields, row, strict=True)))
        built.append(known[row] if is_there else None)
    return built


def _series(frame: pl.DataFrame, prefix: str, kind: type, columns: dict[str, Any]) -> list[tuple[Any, ...]]:
    lists = [frame[prefix + name].to_list() for name in columns]
    return [
        tuple(
            kind(**dict(zip(columns, item, strict=True)))
            for item in zip(*(values or () for values in row), strict=True)
        )
        for row in zip(*lists, strict=True)
    ]


def _bare(column: str) -> str:
    """`device_kind` -> `kind`: a device's columns are named for the table, its fields for the device."""
    return column.removeprefix("device_")
