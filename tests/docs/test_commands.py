"""Documented commands, options and sweep files are those of the code, both ways."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from jobs.cli import app
from orchestrator.spec import (
    BoundarySpec,
    ModelSpec,
    SpeculationSpec,
    StreamingSpec,
    SweepSpec,
    dump_spec,
    load_spec,
    parse_spec,
)
from tests.docs.pages import fences, names, pages, rows, section, spans, text
from tests.docs.repository import ROOT

CLI = "docs/cli.md"
APP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = APP.commands
#: Section of docs/sweep-file.md -> the keys that it lists.
KEYS: dict[str, type[BaseModel]] = {
    "Top level": SweepSpec,
    "`models`": ModelSpec,
    "`streaming`": StreamingSpec,
    "`speculation`": SpeculationSpec,
    "`boundary`": BoundarySpec,
}


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    assert {name.split()[1] for name in names(CLI, "The command line", "command")} == set(COMMANDS)
    shown = names("README.md", "A sweep file and the commands", "command")
    assert {name.split()[1] for name in shown} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_documented_with_their_defaults(name: str) -> None:
    options = {
        option: parameter
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option != "--help"
    }
    if not options:
        assert section(CLI, f"`{name}`").strip().startswith("No options")
        return
    documented = rows(CLI, f"`{name}`", "option")
    assert {spans(row["option"])[0] for row in documented} == set(options)
    for row in documented:
        option = options[spans(row["option"])[0]]
        if option.required:
            assert row["default"] == "required", row
        elif option.default not in (None, False):
            assert spans(row["default"]) == [str(option.default)], row


def commands(page: Path) -> list[list[str]]:
    """Every command line of a page: of its shell blocks, and of its prose."""
    blocks = "".join(fence.text for fence in fences(page, "sh")).replace("\\\n", " ")
    lines = [line.partition("  #")[0] for line in blocks.splitlines()] + spans(text(page))
    return [shlex.split(line) for line in lines if line.strip()]


def oomline_arguments(words: list[str]) -> list[str] | None:
    """Return what follows `oomline`, or `python -m jobs` anywhere in the line; None where neither is there."""
    for at, word in enumerate(words):
        if word == "oomline" and at == 0:
            return words[1:]
        if words[at : at + 3] == ["python", "-m", "jobs"]:
            return words[at + 3 :]
    return None


@pytest.mark.parametrize("page", pages(), ids=str)
def test_documented_command_lines_are_accepted(page: Path) -> None:
    for words in commands(page):
        called = oomline_arguments(words)
        if not called or called[0] == "COMMAND":
            continue
        name, *arguments = called
        if name.startswith("--"):
            assert name in {option for parameter in APP.params for option in parameter.opts}, words
            continue
        assert name in COMMANDS, words
        command = COMMANDS[name]
        values, _, _ = command.make_parser(command.context_class(command)).parse_args(list(arguments))
        spec = values.get("spec")
        if spec is not None and spec.startswith("jobs/"):
            load_spec((ROOT / spec).read_text(), list(values.get("overrides") or []))


@pytest.mark.parametrize("page", pages(), ids=str)
def test_documented_benchmarks_have_their_options(page: Path) -> None:
    for words in commands(page):
        if words[:2] != ["python", "-m"] or words[2].split(".")[0] not in ("tests", "jobs"):
            continue
        module = importlib.util.find_spec(words[2])
        assert module is not None, words
        if module.submodule_search_locations is not None:
            module = importlib.util.find_spec(f"{words[2]}.__main__")
            assert module is not None, words
        assert module.origin is not None
        source = Path(module.origin).read_text()
        for option in (word for word in words[3:] if word.startswith("--") and words[2] != "jobs"):
            assert f'"{option}"' in source, words


@pytest.mark.parametrize("page", pages(), ids=str)
def test_documented_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = [words[1] for words in commands(page) if words[0] == "make" and len(words) == 2]
    assert [name for name in used if name not in targets] == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_documented_sweep_files_are_valid(page: Path) -> None:
    for fence in fences(page, "yaml"):
        if "models:" in fence.text:
            load_spec(fence.text)


@pytest.mark.parametrize("heading", KEYS)
def test_every_key_is_documented_with_its_default(heading: str) -> None:
    documented = rows("docs/sweep-file.md", heading, "key")
    model = KEYS[heading]
    assert {spans(row["key"])[0] for row in documented} == set(model.model_fields)
    for row in documented:
        field = model.model_fields[spans(row["key"])[0]]
        if field.is_required():
            assert row["default"] == "–", row
        elif row["default"] != "see below":
            written = yaml.safe_load(spans(row["default"])[0])
            assert written == default_of(model, spans(row["key"])[0]), row


def default_of(model: type[BaseModel], key: str) -> object:
    """As it stands in a resolved sweep file."""
    smallest = {"name": "x", "models": [{"target": "pocket"}], "boundary": {}}
    resolved = yaml.safe_load(dump_spec(parse_spec(smallest)))
    where = {
        SweepSpec: {**resolved, "boundary": None},
        ModelSpec: resolved["models"][0],
        StreamingSpec: resolved["streaming"],
        SpeculationSpec: resolved["speculation"],
        BoundarySpec: resolved["boundary"],
    }
    return where[model][key]


def test_every_sweep_file_that_ships_is_documented() -> None:
    there = {f"jobs/sweeps/{path.name}" for path in (ROOT / "jobs/sweeps").glob("*.yaml")}
    assert set(names("docs/sweep-file.md", "Files to copy from", "file")) == there


def test_every_deployment_file_is_documented() -> None:
    there = {f"jobs/deploy/{path.name}" for path in (ROOT / "jobs/deploy").iterdir() if path.is_file()}
    assert set(names("docs/cluster.md", "Files in `jobs/deploy/`", "file")) == there
