"""The journal's columns derive from the dataclasses; this holds what derives to what is written down."""

from pathlib import Path

import polars as pl

from orchestrator.journal.record import SCHEMA, SCHEMA_VERSION

HERE = Path(__file__).parent
LANDED = Path(__file__).parents[2] / "data" / "run-0.1" / "journal"


def test_names_and_types_are_those_written_down() -> None:
    """A column that is new belongs into `columns.txt`; one that goes or changes its type, into a migration too."""
    there = [f"{name} {dtype}" for name, dtype in sorted(SCHEMA.items())]
    assert there == (HERE / "columns.txt").read_text().splitlines()


def test_every_column_of_version_0_1_is_there_with_its_type() -> None:
    assert SCHEMA_VERSION == 1
    for part in LANDED.glob("*.parquet"):
        for name, dtype in pl.read_parquet_schema(part).items():
            assert SCHEMA[name] == dtype, name
