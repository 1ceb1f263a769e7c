"""Documented columns, outcomes, modes, metrics, shapes and sections are those of the code, both ways."""

import ast
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from orchestrator.axes import AXES
from orchestrator.journal.folder import read_run
from orchestrator.tables.write import write_tables
from tests.docs.pages import names, rows, section, spans, text
from tests.docs.repository import ROOT, sources, tree
from workers.engines.families import FAMILIES, STATIC_ROPE
from workers.models.shapes import shapes
from workers.modes import MODES, POLICIES
from workers.outcome import Outcome

TABLES = "docs/tables.md"
TYPES = {
    pl.String: "text",
    pl.Int64: "integer",
    pl.UInt32: "integer",
    pl.Float64: "float",
    pl.Boolean: "boolean",
    pl.Datetime: "time",
    pl.List: "list of integers",
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.Schema]:
    """The schema of every table that a run folder gets."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    shutil.copytree(ROOT / "tests/data/run-0.1", folder)
    with write_tables(read_run(folder)):
        pass
    return {
        path.stem: pl.Schema(pl.read_parquet_schema(path)) for path in (folder / "tables").glob("*.parquet")
    }


def test_every_table_is_documented(tables: dict[str, pl.Schema]) -> None:
    headings = re.findall(r"^## `(\w+)`$", text(TABLES), re.MULTILINE)
    assert set(headings) == set(tables)


@pytest.mark.parametrize(
    "table",
    [
        "attempts",
        "samples",
        "steps",
        "devices",
        "summary",
        "boundaries",
        "quality",
        "retrieval",
        "effective_length",
        "duplicates",
    ],
)
def test_every_column_is_documented_with_its_type(tables: dict[str, pl.Schema], table: str) -> None:
    documented = {spans(row["column"])[0]: row["type"] for row in rows(TABLES, f"`{table}`", "column")}
    there = {name: TYPES[dtype.base_type()] for name, dtype in tables[table].items()}
    of_axes = {spans(row["axis"])[0]: row["type"] for row in rows(TABLES, "Axes", "axis")}
    keyed = {name: dtype for name, dtype in there.items() if name in of_axes and name not in documented}
    assert documented | keyed == there
    assert keyed == {name: of_axes[name] for name in keyed}
    if keyed:
        assert re.search(r"[Ee]very axis|[Tt]he axes", section(TABLES, f"`{table}`"))


def test_every_axis_is_documented_with_its_role() -> None:
    documented = [(spans(row["axis"])[0], row["role"]) for row in rows(TABLES, "Axes", "axis")]
    assert documented == [(axis.name, axis.role.name.lower()) for axis in AXES]


def test_every_outcome_is_documented() -> None:
    assert sorted(names("docs/concepts.md", "Outcomes", "outcome")) == sorted(Outcome)


def test_every_mode_is_documented_as_it_is() -> None:
    documented = {spans(row["mode"])[0]: row for row in rows("docs/modes.md", "Modes", "mode")}
    assert set(documented) == set(MODES)
    for name, mode in MODES.items():
        row = documented[name]
        assert spans(row["policy"]) == [mode.policy.name], name
        assert spans(row["decoder"]) == [mode.decoder.name], name
        assert set(row["workloads"].split(", ")) == mode.workloads, name
        assert set(row["engines"].split(", ")) == mode.engines, name


def test_every_policy_is_documented() -> None:
    assert sorted(names("docs/modes.md", "Modes", "policy")) == sorted(POLICIES)


def test_every_family_is_documented_with_its_ropes() -> None:
    heading = "Families of the graph engine"
    assert sorted(names("docs/models.md", heading, "model type")) == sorted(FAMILIES)
    _, _, about_rope = section("docs/models.md", heading).partition("rotary embeddings")
    assert sorted(spans(about_rope)) == sorted(STATIC_ROPE)


def test_every_known_shape_is_documented() -> None:
    listed = re.search(r"<!-- shapes -->(.*)<!-- end of shapes -->", text("docs/models.md"), re.DOTALL)
    assert listed is not None
    assert sorted(spans(listed[1])) == sorted(shapes())


def test_every_metric_is_documented() -> None:
    constants = {
        node.value
        for node in ast.walk(tree(Path("orchestrator/fleet/metrics.py")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    there = {f"ray_{name}" for name in constants if re.fullmatch(r"oomline_\w+", name)}
    assert set(names("docs/cluster.md", "Watching", "metric")) == there


def test_every_section_of_the_report_is_documented() -> None:
    titles = {
        node.args[0].value
        for path in sources("orchestrator/report/sections")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Section"
        and isinstance(node.args[0], ast.Constant)
    }
    assert {row["section"] for row in rows("docs/report.md", "Sections", "section")} == titles


def test_every_test_that_the_page_of_faults_cites_exists() -> None:
    folders = {
        row["letter"]: spans(row["tests in"])[0]
        for row in rows("docs/faults.md", "Faults, outcomes and their tests", "letter")
    }
    for row in rows("docs/faults.md", "Faults, outcomes and their tests", "fault"):
        letter = ""
        for found, name in re.findall(r"(?:\b([A-Z]) )?`(test_\w+)`", row["test"]):
            letter = found or letter
            assert (ROOT / folders[letter] / f"{name}.py").is_file(), row


def test_the_readme_stays_short() -> None:
    assert len(text("README.md").splitlines()) <= 150
    assert len(rows("README.md", "Results", "budget")) <= 8


def test_the_glossary_explains_what_the_front_page_speaks_of() -> None:
    words = re.findall(r"^\| \*\*([\w -]+)\*\*", section("docs/concepts.md", "Glossary"), re.MULTILINE)
    wanted = {"cell", "probe", "bracket", "censored", "engine", "mode", "sink", "window", "gamma"}
    wanted |= {"oracle draft", "break-even", "pruned", "slot", "lease", "prefill reach", "budget"}
    assert wanted <= set(words)
    assert words == sorted(words)
