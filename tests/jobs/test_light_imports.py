"""What a command does not import: a person who asks for help, or starts a sweep, waits for none of it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "numpy", "altair", "vl_convert")
TABLES = ("polars", "ray")

#: What is run, and what of it must not be loaded then.
CASES = {
    "the driver": ("import jobs.run", HEAVY),
    "help": ("from jobs.cli import app; app(['--help'], standalone_mode=False)", (*HEAVY, *TABLES, "pydantic")),
    "a command's help": ("from jobs.cli import app; app(['run', '--help'], standalone_mode=False)", (*HEAVY, *TABLES)),
    "a sweep file": ("from orchestrator.spec import parse_spec", (*HEAVY, "polars", "ray")),
    "status": ("import jobs.status_view, orchestrator.status", (*HEAVY, "ray")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_needed_is_not_imported(case: str) -> None:
    code, absent = CASES[case]
    script = f"{code}\nimport sys\nprint('loaded:', *sorted({set(absent)!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].split() == ["loaded:"]
