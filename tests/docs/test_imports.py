"""Imports run one way, and the libraries that are hard to test stay where docs/architecture.md says."""

import ast
import importlib
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.repository import PACKAGES, imported, sources, tree

ABOVE = {
    "workers": ("orchestrator", "jobs", "tests"),
    "orchestrator": ("jobs", "tests"),
    "jobs": ("tests",),
}
ROOMS = {
    "ray": Path("orchestrator/fleet"),
    "pynvml": Path("workers/meters/nvml"),
    "triton": Path("workers/engines/graph/kernels"),
}


@pytest.mark.parametrize("package", ABOVE)
def test_nothing_imports_upwards(package: str) -> None:
    wrong = [
        f"{path} imports {name}"
        for path in sources(package)
        for name in imported(path)
        if name.split(".")[0] in ABOVE[package]
    ]
    assert not wrong


def test_no_files_import_each_other() -> None:
    """Not even for annotations, nor by way of others."""
    files = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in sources(*PACKAGES)
    }
    graph = {path: [files[name] for name in _modules(path, files)] for path in files.values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path) for path in error.args[1]))


def _modules(path: Path, files: Container[str]) -> Iterator[str]:
    """The files that a file imports: of `from a import b`, `a.b` if that is a file, else `a`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                name = name if name in files else str(node.module)
                if name in files:
                    yield name


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_its_room_only(library: str) -> None:
    room = ROOMS[library]
    users = [
        path for path in sources(*PACKAGES) if library in {name.split(".")[0] for name in imported(path)}
    ]
    assert users
    assert [path for path in users if path != room and room not in path.parents] == []


def test_what_is_imported_from_this_project_is_there() -> None:
    """Also inside functions, such as those of benchmarks that need a GPU and run in no test."""
    wrong = []
    for path in sources("jobs", "orchestrator", "workers", "tests"):
        modules: dict[str, ModuleType] = {}
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in (
                *PACKAGES,
                "tests",
            ):
                continue
            for alias in node.names:
                try:
                    modules[alias.asname or alias.name] = importlib.import_module(
                        f"{node.module}.{alias.name}"
                    )
                except ModuleNotFoundError:
                    if not hasattr(importlib.import_module(str(node.module)), alias.name):
                        wrong.append(f"{path}: {node.module}.{alias.name}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                if module is not None and not hasattr(module, node.attr):
                    wrong.append(f"{path}: {module.__name__}.{node.attr}")
    assert wrong == []
