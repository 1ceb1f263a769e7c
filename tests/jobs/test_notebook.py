"""docs/notebook.ipynb, run from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.repository import ROOT


def test_the_notebook_runs(ray_head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the Ray of the tests, as on a cluster."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "jobs/api")]))
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(cell.get("outputs", []) == [] for cell in notebook.cells), "commit it without outputs"
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    told = {
        cell.source.splitlines()[-1]: cell.outputs[-1].get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.outputs
    }
    assert told["run.exit_status"]["text/plain"] == "0"
    assert "streaming" in told["run"]["text/markdown"]
    assert told["run.report()"]["text/plain"].endswith("report.html'")
