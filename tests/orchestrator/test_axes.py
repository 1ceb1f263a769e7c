"""One list of axes: what is added to it is in the columns, the keys and the captions of every table."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator import axes
from orchestrator.axes import AXES, Role
from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record, cell_columns
from orchestrator.plan import expand
from orchestrator.report import compare, render
from orchestrator.spec import BoundarySpec, ModelSpec
from orchestrator.tables.write import derive
from tests.orchestrator.fake_run import attempt_of, demo_attempts, demo_spec
from workers.attempt import Attempt
from workers.cell import Cell, ModelRef, from_json, later, to_json

BOTH = demo_spec(
    models=[
        ModelSpec(target="pocket", dtype="float32", attn_implementation=name) for name in ("auto", "eager")
    ],
    modes=["baseline", "streaming"],
    lengths=[500, 2000],
)


@pytest.fixture(scope="module", params=["CONDITION", "SETTING", "POLICY"])
def with_a_moon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tables and report make of a sweep with one more axis, `moon`, under a role."""
    command = [sys.executable, "-m", "tests.orchestrator.extra_axis", str(tmp_path_factory.mktemp("moon"))]
    done = subprocess.run([*command, request.param], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"role": request.param, **json.loads(done.stdout.splitlines()[-1])}


def test_a_new_axis_is_in_the_key_of_every_table(with_a_moon: dict[str, Any]) -> None:
    found = with_a_moon
    assert found["attempts"] == ["full", "new"]
    assert found["summary"] == [["full", 8], ["new", 8]]
    assert found["summary_n"] == [1], "cells under two moons are no repeats of each other"
    modes = ("baseline", "baseline+spec", "streaming", "streaming+spec")
    assert found["boundaries"] == [[mode, moon] for mode in modes for moon in ("full", "new")]
    assert found["quality"] == [
        [mode, moon] for mode in ("baseline", "streaming") for moon in ("full", "new")
    ]
    assert found["failures"] == 4, "two modes run out of memory, under each moon"
    assert found["compared"] == 2 * (2 * 8) + 2 * 4


def test_twins_and_baselines_are_of_the_same_moon(with_a_moon: dict[str, Any]) -> None:
    assert (with_a_moon["speedups"], with_a_moon["twins"]) == (0, 0), "each has its baseline"
    assert with_a_moon["speculated"] == [
        [mode, moon, False] for mode in ("baseline+spec", "streaming+spec") for moon in ("full", "new")
    ]


def test_a_new_axis_groups_and_captions_the_report(with_a_moon: dict[str, Any]) -> None:
    found, role = with_a_moon, with_a_moon["role"]
    assert found["settings"] == (2 if role == "SETTING" else 1)
    assert len(found["conditions"]) == (1 if role == "POLICY" else 2)
    assert any("moon full" in words for words in found["conditions"]) == (role == "CONDITION")
    assert any("moon full" in words for words in found["variants"]) == (role == "POLICY")
    # Modes stay together with what they are compared with; policies of one condition do too.
    assert found["ranks"] == (1 if role == "POLICY" else 2)


def _recorded(folder: Path, attempts: list[Attempt]) -> Path:
    with open_run(folder, BOTH) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    return folder


def _ends_sooner(attempt: Attempt) -> Attempt:
    """An attempt at the same cell on half the card: what another attention implementation might cost."""
    assert attempt.cell.budget is not None
    half = dataclasses.replace(attempt.cell, budget=attempt.cell.budget * 5 // 8)
    return dataclasses.replace(attempt_of(half, 0), cell=attempt.cell, lease_id=attempt.lease_id)


def test_a_target_under_two_attention_implementations_keeps_both_boundaries(tmp_path: Path) -> None:
    attempts = [
        _ends_sooner(one) if one.cell.model.attn_implementation == "eager" else one
        for one in demo_attempts(BOTH)
    ]
    folder = _recorded(tmp_path / "run", attempts)
    with derive(read_run(folder)) as tables:
        rows = [row for row in tables.boundaries if row.mode == "baseline"]
    found = {row.identity["attn_implementation"]: (row.last_ok, row.first_oom) for row in rows}
    assert found == {"auto": (2000, None), "eager": (None, 500)}

    render(folder)
    table = pl.read_parquet(folder / "tables" / "boundaries.parquet").filter(mode="baseline")
    assert sorted(table["attn_implementation"]) == ["auto", "eager"]
    text = (folder / "report.md").read_text().split("\n## Where memory ends")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if "| baseline |" in line]
    assert len(lines) == 2
    assert sum("eager attention" in line and "(0, 500]" in line for line in lines) == 1
    assert sum("eager attention" not in line and "≥ 2,000" in line for line in lines) == 1
    assert compare([folder, folder]).count("| pocket baseline, eager, 64 MiB, decode") == 2


def test_a_search_and_the_runs_beside_it_keep_to_their_attention(tmp_path: Path) -> None:
    """The measured cells of each implementation stand in for the search that it has not finished."""
    spec = BOTH.model_copy(update={"boundary": BoundarySpec(max_length=4000), "lengths": [500]})
    cells = [cell for cell in expand(spec) if cell.mode == "baseline"]
    with open_run(tmp_path, spec) as run:
        run.journal.append([Record(run.run_id, attempt_of(cell, n)) for n, cell in enumerate(cells)])
    with derive(read_run(tmp_path)) as tables:
        rows = [row.identity["attn_implementation"] for row in tables.boundaries if row.mode == "baseline"]
    assert sorted(rows) == ["auto", "eager"]


def test_every_axis_is_read_from_a_cell_and_is_a_column() -> None:
    for attempt in demo_attempts():
        columns = cell_columns(attempt.cell)
        assert list(columns) == ["cell_id", "cell_json", *axes.names()]
    assert len(set(axes.names())) == len(AXES)


def test_the_usual_value_is_that_of_a_cell_that_asks_for_nothing() -> None:
    """Captions leave it out, and cells that were recorded before there was the axis are given it."""
    plain = Cell(
        model=ModelRef(target="pocket"), mode="baseline", engine="eager", prompt_tokens=64, length=500
    )
    usual = {axis.name: axis.usual for axis in AXES if axis.usual is not None}
    assert {name: axes.read(plain)[name] for name in usual} == usual


def test_equal_values_of_all_axes_are_equal_cells() -> None:
    """An axis that is missing from the list would let two different cells pass for repeats of each other."""
    for attempt in demo_attempts():
        cell = attempt.cell
        for field in dataclasses.fields(Cell):
            changed = _changed(cell, field.name)
            if changed is not None:
                assert axes.read(changed) != axes.read(cell), field.name


def _changed(cell: Cell, name: str) -> Cell | None:
    value = getattr(cell, name)
    match value:
        case bool() | None:
            return None
        case int() | float():
            return dataclasses.replace(cell, **{name: value + 1})
        case str() if name == "mode":
            return dataclasses.replace(cell, mode="window" if value != "window" else "baseline")
        case str():
            return dataclasses.replace(cell, **{name: value + "x"})
        case _:
            inner = dataclasses.fields(value)[0].name
            old = getattr(value, inner)
            new = old + "x" if isinstance(old, str) else old + 1
            return dataclasses.replace(cell, **{name: dataclasses.replace(value, **{inner: new})})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellOfTomorrow(Cell):
    """A cell after an axis was added to it."""

    moon: str = later("new")


def test_a_field_that_came_later_changes_no_id_of_earlier_cells() -> None:
    (cell, *_) = expand(BOTH)
    fields = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    assert CellOfTomorrow(**fields).cell_id == cell.cell_id
    assert CellOfTomorrow(**fields, moon="full").cell_id != cell.cell_id
    assert to_json(CellOfTomorrow(**fields))["moon"] == "new"
    assert from_json(to_json(cell)) == cell


def test_a_caption_tells_only_what_is_unusual() -> None:
    (cell, *_) = expand(BOTH)
    assert axes.unusual(axes.read(cell), Role.CONDITION, but=["prompt_tokens"]) == []
    odd = dataclasses.replace(
        cell,
        model=dataclasses.replace(cell.model, attn_implementation="eager"),
        batch_size=4,
        repetition_penalty=1.2,
        prefill_chunk=512,
    )
    assert axes.unusual(axes.read(odd), Role.CONDITION, but=["prompt_tokens"]) == [
        *("batch 4", "penalty 1.2", "eager attention", "prompt in chunks of 512"),
    ]
