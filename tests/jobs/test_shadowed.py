"""A sweep file in a folder whose modules have the names of ours, of the library's and of a dependency's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from tests.workers.host.cells import gpt_neox

ROOT = Path(jobs.__file__).parents[1]


@pytest.mark.timeout(240)
def test_modules_beside_the_sweep_file_are_not_imported(tmp_path: Path) -> None:
    for name in (
        "random",
        "statistics",
        "transformers",
        "polars",
        "numpy",
        "typing_extensions",
        "workers/__init__",
        "orchestrator/__init__",
    ):
        module = tmp_path / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text("raise RuntimeError(f'{__file__} was imported')")
    (tmp_path / "sweep.yaml").write_text(
        f"{{name: shadowed, models: [{{target: '{gpt_neox(tmp_path / 'model')}', dtype: float32}}], "
        "modes: [baseline], lengths: [20], prompt_tokens: [8]}"
    )
    environ = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "run", "sweep.yaml", "--out", "run", "--slots", "1"],
        cwd=tmp_path,
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cell computed, 0 reused (1 ok)" in done.stdout
    assert "was imported" not in done.stdout + done.stderr
