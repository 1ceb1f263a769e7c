"""Imports run one way, and the libraries that are hard to test stay where docs/architecture.md says."""

from pathlib import Path

import pytest

from tests.docs.repository import PACKAGES, imported, sources

ABOVE = {
    "workers": ("orchestrator", "jobs", "tests"),
    "orchestrator": ("jobs", "tests"),
    "jobs": ("tests",),
}
ROOMS = {
    "ray": Path("orchestrator/fleet"),
    "pynvml": Path("workers/meters/nvml.py"),
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


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_its_room_only(library: str) -> None:
    room = ROOMS[library]
    users = [
        path for path in sources(*PACKAGES) if library in {name.split(".")[0] for name in imported(path)}
    ]
    assert users
    assert [path for path in users if path != room and room not in path.parents] == []
