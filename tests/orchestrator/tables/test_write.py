from pathlib import Path

import polars as pl

from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.tables.write import write_tables
from tests.orchestrator.fake_run import demo_attempts, demo_spec

_BOUNDARIES = """
model mode engine device_kind budget_bytes batch_size phase last_ok first_oom resolution confirmed_ok confirmed_oom
censored predicted error_pct bytes_per_token analytic_bytes_per_token
"""


def test_every_table_is_written_again_from_the_journal(tmp_path: Path) -> None:
    with open_run(tmp_path, demo_spec()) as folder:
        folder.journal.append([Record(folder.run_id, attempt) for attempt in demo_attempts()])
        folder.journal.append([Record(folder.run_id, attempt) for attempt in demo_attempts()[:2]])
    for _ in range(2):
        with write_tables(read_run(tmp_path)):
            pass
    tables = {path.stem: pl.read_parquet(path) for path in (tmp_path / "tables").iterdir()}

    short = {"attempts", "summary", "quality", "retrieval", "effective_length", "boundaries", "duplicates"}
    assert set(tables) == short | {"samples", "steps", "devices"}
    assert tables["attempts"].height == 20
    assert tables["duplicates"].height == 2
    assert tables["samples"].height == sum(len(attempt.samples) for attempt in demo_attempts())
    assert set(_BOUNDARIES.split()) <= set(tables["boundaries"].columns)
    found = {row["mode"]: row for row in tables["boundaries"].iter_rows(named=True)}
    assert (found["baseline"]["last_ok"], found["baseline"]["first_oom"]) == (2000, 4000)
    assert found["streaming"]["censored"]
    assert not list(tmp_path.glob(".scratch*"))


def test_an_empty_journal_makes_empty_tables(tmp_path: Path) -> None:
    open_run(tmp_path, demo_spec()).close()
    with write_tables(read_run(tmp_path)) as tables:
        assert tables.attempts.is_empty()
    assert pl.read_parquet(tmp_path / "tables" / "summary.parquet").is_empty()
    assert pl.read_parquet(tmp_path / "tables" / "samples.parquet").is_empty()
