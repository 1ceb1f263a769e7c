"""Whatever a page or a docstring points at is there."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import anchors, fences, links, pages, prose, spans
from tests.docs.repository import PACKAGES, ROOT, sources, tree

_FOLDERS = ("jobs/", "orchestrator/", "workers/", "tests/", "docs/")
#: A path of the repository: a known folder, then names; a file, or a folder where it ends in a slash.
_PATH = re.compile(r"(?:jobs|orchestrator|workers|tests|docs)/[\w./-]*\w(?:\.\w+|/)?")
_MODULE = re.compile(r"python -m ((?:jobs|orchestrator|workers|tests)[\w.]*)")
#: Written by a run, not part of the repository.
_OF_A_RUN = {"report.md"}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.resolve().relative_to(ROOT))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_file_that_a_page_cites_exists(page: Path) -> None:
    cited = [span for span in spans(prose(page)) if span.startswith(_FOLDERS) and _PATH.fullmatch(span)]
    cited += [path for fence in fences(page) for path in _PATH.findall(fence.text) if "." in path]
    assert [path for path in cited if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_module_that_a_page_runs_exists(page: Path) -> None:
    body = prose(page) + "".join(fence.text for fence in fences(page))
    assert [name for name in _MODULE.findall(body) if importlib.util.find_spec(name) is None] == []


def test_every_page_is_in_the_index() -> None:
    indexed = {(ROOT / "docs" / link).resolve() for link in links("docs/README.md")}
    there = {path.resolve() for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"}
    assert there <= indexed


def test_every_result_is_in_its_index() -> None:
    folder = ROOT / "docs" / "results"
    indexed = {(folder / link).resolve() for link in links("docs/results/README.md")}
    assert {path.resolve() for path in folder.glob("*.md") if path.name != "README.md"} <= indexed


def test_the_package_index_gets_a_page_without_relative_links() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [link for link in links(project["readme"]) if "://" not in link] == []
    assert all((ROOT / name).is_file() for name in project["license-files"])


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_docstrings_cite_only_pages_of_this_repository() -> None:
    wrong = []
    for path in sources(*PACKAGES, "tests"):
        for docstring in docstrings(path):
            for cited in re.findall(r"[\w./-]+\.md\b", docstring):
                if cited not in _OF_A_RUN and not (ROOT / cited).is_file():
                    wrong.append(f"{path}: {cited}")
            wrong += [f"{path}: {found}" for found in re.findall(r"(?i)\bthe contract\b", docstring)]
    assert wrong == []


def test_docstrings_run_only_modules_that_exist() -> None:
    wrong = [
        f"{path}: {name}"
        for path in sources(*PACKAGES, "tests")
        for docstring in docstrings(path)
        for name in _MODULE.findall(docstring)
        if importlib.util.find_spec(name.rstrip(".")) is None
    ]
    assert wrong == []


def test_the_shipped_model_cards_name_the_command_that_made_them() -> None:
    for card in (ROOT / "workers/models/data").glob("*/README.md"):
        commands = _MODULE.findall(card.read_text())
        assert commands
        assert [name for name in commands if importlib.util.find_spec(name) is None] == []
