"""A run as JSON, and the JSON Schema of it. A name or meaning that changes raises `SCHEMA_VERSION`; a new one does not."""

import dataclasses
import tempfile
from typing import Any

import polars as pl

from orchestrator.answer import AnswerLine, RunAnswer
from orchestrator.journal.folder import RecordedRun, open_run, read_run
from orchestrator.journal.manifest import version_of
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.status import RunStatus
from orchestrator.tables.boundaries import boundary_frame
from orchestrator.tables.write import Tables, derive

SCHEMA_VERSION = 1


def run_as_json(run: RecordedRun, tables: Tables, status: RunStatus, answer: RunAnswer) -> dict[str, Any]:
    """Return everything of a run that is short: `run_schema()` describes it. No value is NaN or infinite."""
    environment = None if run.manifest is None else run.manifest.environment.model_dump(mode="json")
    return {
        "schema_version": SCHEMA_VERSION,
        "oomline": version_of("oomline"),
        "run_id": None if run.manifest is None else run.manifest.run_id,
        "name": status.name,
        "folder": status.folder,
        "state": status.state,
        "note": status.note,
        "cells": {"planned": status.planned, "completed": status.completed, "probes": status.probes},
        "attempts": status.attempts,
        "outcomes": status.outcomes,
        "spec": None if run.spec is None else run.spec.model_dump(mode="json"),
        "environment": environment,
        "answer": dataclasses.asdict(answer),
        "summary": _rows(tables.summary),
        "boundaries": _rows(boundary_frame(tables.boundaries)),
    }


def run_schema() -> dict[str, Any]:
    """Return the JSON Schema of `run_as_json`, from the columns and fields as they are."""
    sizes = {"type": "integer", "minimum": 0}
    maybe = {"type": ["integer", "null"], "minimum": 0}
    text, maybe_text = {"type": "string"}, {"type": ["string", "null"]}
    line = {field.name: text for field in dataclasses.fields(AnswerLine)}
    summary, boundaries = _columns()
    properties = {
        "schema_version": {"const": SCHEMA_VERSION},
        "oomline": {**text, "description": "version that wrote this"},
        "run_id": maybe_text,
        "name": text,
        "folder": text,
        "state": {"enum": ["running", "finished", "stopped", "failed", "unknown"]},
        "note": text,
        "cells": _object({"planned": maybe, "completed": sizes, "probes": sizes}),
        "attempts": sizes,
        "outcomes": {"type": "object", "additionalProperties": sizes},
        "spec": {"anyOf": [{"type": "object"}, {"type": "null"}], "description": "the resolved sweep file"},
        "environment": {"anyOf": [{"type": "object"}, {"type": "null"}], "description": "code, packages"},
        "answer": _object({"sentences": _array(text), "lines": _array(_object(line))}),
        "summary": _array(_object(summary)),
        "boundaries": _array(_object(boundaries)),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"oomline run, version {SCHEMA_VERSION}",
        **_object(properties),
    }


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    floats = [name for name, kind in frame.schema.items() if kind.is_float()]
    known = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats]
    return frame.with_columns(known).to_dicts()


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _columns() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the tables `summary` and `boundaries`: those of a run in which nothing has ended."""
    smallest: SweepSpec = parse_spec({"name": "schema", "models": ["pocket"]})
    with tempfile.TemporaryDirectory() as folder:
        open_run(folder, smallest).close()
        with derive(read_run(folder)) as tables:
            frames = tables.summary, boundary_frame([])
    summary, boundaries = ({name: _type_of(kind) for name, kind in frame.schema.items()} for frame in frames)
    return summary, boundaries


def _type_of(kind: pl.DataType) -> dict[str, Any]:
    if isinstance(kind, pl.List):
        return {"type": ["array", "null"]}
    if kind.is_integer():
        return {"type": ["integer", "null"]}
    if kind.is_float():
        return {"type": ["number", "null"]}
    return {"type": ["boolean" if kind == pl.Boolean else "string", "null"]}
