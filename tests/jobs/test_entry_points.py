"""Policies and decoders of another package: `tests/data/plugin` has one of each."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.docs.repository import ROOT

PLUGIN = ROOT / "tests/data/plugin"
SWEEP = """
name: own
models: [{target: "random:pythia-14m", dtype: float32}]
modes: [baseline, everything, everything+steady]
lengths: 8
prompt_tokens: 8
"""


def _python(arguments: list[str], path: list[Path], **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path])), **variables}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environ)


def test_a_sweep_runs_modes_of_another_package(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SWEEP)
    command = [
        "-m",
        "jobs",
        "run",
        str(tmp_path / "own.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--slots",
        "1",
    ]
    ran = _python(command, [PLUGIN])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    attempts = pl.read_parquet(tmp_path / "run/tables/attempts.parquet").sort("mode")
    assert attempts.select("mode", "cache_policy", "decoder", "outcome").rows() == [
        ("baseline", "full", "plain", "ok"),
        ("everything", "everything", "plain", "ok"),
        ("everything+steady", "everything", "steady", "ok"),
    ]
    # Its decoder says that it matches the plain one; the report holds it to that.
    assert attempts["output_sha256"].n_unique() == 1


@pytest.mark.parametrize("first", ["workers.modes", "oomline_example.cache"])
def test_modes_are_found_whichever_is_imported_first(first: str) -> None:
    """In a worker without the package's metadata they come by the variable that its driver has set."""
    carried = _python(
        ["-c", "from workers.modes.installed import carried; print(*carried().values())"], [PLUGIN]
    )
    code = f"import {first}; from workers.modes import MODES; print([m for m in MODES if 'everything' in m])"
    bare = _python(
        ["-c", f"import sys; sys.path.append({str(PLUGIN)!r}); sys.path_importer_cache.clear(); {code}"],
        [],
        OOMLINE_ENTRY_POINTS=carried.stdout.strip(),
    )
    assert bare.stdout.strip() == "['everything', 'everything+spec', 'everything+steady']", bare.stderr


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere:POLICY", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("workers.modes:PLAIN", "is a Decoder, not a CachePolicy"),
        ("workers.modes.policies:FULL", "has the name 'full', which is taken"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_one_line(value: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SWEEP)
    variable = f'[["oomline.policies", "mine", "{value}"]]'
    ran = _python(["-m", "jobs", "plan", str(tmp_path / "own.yaml")], [], OOMLINE_ENTRY_POINTS=variable)
    assert ran.returncode == 2
    assert ran.stderr.strip() == f"oomline: entry point mine = {value} of oomline.policies {words}"
