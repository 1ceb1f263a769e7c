"""A first sweep file, those that come along, and what an editor knows of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.cli import main
from jobs.sweep_files import built_in, find, schema
from orchestrator.spec import (
    BoundarySpec,
    ModelSpec,
    RetrieveSpec,
    SpeculationSpec,
    StreamingSpec,
    SweepSpec,
    load_spec,
)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def oomline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["oomline", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_a_sweep_that_comes_along_is_planned_by_name(oomline: Call) -> None:
    status, said, _ = oomline(
        "plan", "pythia-2.8b-random", "--set", "modes=[baseline]", "--set", "lengths=500", "--json"
    )
    assert status == 0
    assert json.loads(said)["cells"] > 0


def test_an_unknown_name_is_told_with_those_that_there_are(oomline: Call) -> None:
    status, _, said = oomline("plan", "demmo")
    assert status == 2
    assert "demmo: no such file, and no sweep of that name; the nearest is 'demo' (of demo, " in said
    assert "cannot read sweep file demo.yml" in oomline("plan", "demo.yml")[2]


def test_a_file_of_the_name_comes_before_a_sweep_that_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(Path("demo")).is_absolute()
    (tmp_path / "demo").write_text("name: mine")
    assert find(Path("demo")) == Path("demo")


def test_the_first_sweep_file_is_valid_and_names_every_key(oomline: Call, tmp_path: Path) -> None:
    assert oomline("init", "my.yaml")[:2] == (0, "my.yaml: change it, then `oomline plan my.yaml`\n")
    text = (tmp_path / "my.yaml").read_text()
    load_spec(text)
    bare = [line.strip().removeprefix("# ") for line in text.splitlines()]
    for kind in (SweepSpec, ModelSpec, StreamingSpec, SpeculationSpec, BoundarySpec, RetrieveSpec):
        for key in kind.model_fields:
            assert any(f"{key}:" in line for line in bare), key
    status, _, said = oomline("init", "my.yaml")
    assert status == 2
    assert "my.yaml is there already: give another name" in said
    assert oomline("init", "nowhere/my.yaml")[0] == 2


def test_its_comments_show_the_defaults(oomline: Call, tmp_path: Path) -> None:
    """Each commented key of the top level, taken alone, changes nothing."""
    oomline("init")
    bare = "name: t\nmodels: pocket\n"
    lines = [line[2:] for line in (tmp_path / "sweep.yaml").read_text().splitlines() if line.startswith("# ")]
    shown = [
        line
        for line in lines
        if line.partition(":")[0] in SweepSpec.model_fields and not line.startswith("boundary")
    ]
    assert len(shown) > 15
    for line in shown:
        assert load_spec(f"{bare}{line}") == load_spec(bare), line


def checked(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


SCHEMA: dict[str, Any] = schema()


@pytest.mark.parametrize("name", built_in())
def test_the_schema_accepts_the_sweeps_that_come_along(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert checked(find(Path(name)).read_text()) == []


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        ("modes: baseline", True),
        ("modes: [baseline, streaming+spec]", True),
        ("modes: basline", False),
        ("budgets: 8GiB", True),
        ("budgets: [8GiB, device, 1000000000]", True),
        ("lengths: 500-8000*2", True),
        ("lengths: [500, 1000-4000+500]", True),
        ("lengths: true", False),
        ("models: [pocket, {target: gpt2, dtype: bf16}]", True),
        ("models: [{target: gpt2, dtype: fp8}]", False),
        ("models: [{draft: gpt2}]", False),
        ("workload: score", True),
        ("workload: scor", False),
        ("devices: H100", True),
        ("boundary: {phases: prefill, reach: prefill}", True),
        ("boundary: {phase: prefill}", False),
        ("lenghts: 5", False),
        ("repeats: 0", False),
    ],
)
def test_the_schema_knows_what_a_sweep_file_may_say(line: str, valid: bool) -> None:
    text = "name: t\n" + ("" if line.startswith("models") else "models: pocket\n") + line
    assert (checked(text) == []) == valid


def test_the_command_prints_the_schema(oomline: Call) -> None:
    status, said, _ = oomline("schema")
    assert status == 0
    assert json.loads(said) == json.loads(json.dumps(SCHEMA))
