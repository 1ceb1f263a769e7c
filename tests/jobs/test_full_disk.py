"""`oomline run` on a disk that fills up: a message and status 1, no traceback, and a folder to go on in."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import run as command
from orchestrator.journal.journal import Journal
from tests.jobs.simulated_run import simulated_run
from tests.orchestrator.sweep.simulated import spec

CELLS = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for some of the cells."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_a_message_and_the_same_command_goes_on(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_sweep", simulated_run())
    asked = spec(modes=["baseline"], lengths=[1000], repeats=CELLS)
    assert command.run_command(asked, str(disk / "run"), address=None, cpu_slots=None) == 1
    said = capsys.readouterr().out
    assert "make room and run again" in said
    known = len(Journal.open(disk / "run", writable=False).attempts())
    assert 0 < known < CELLS
    assert f"{known} cell{'s' * (known > 1)} computed, 0 reused ({known} ok); {CELLS - known} left" in said

    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    assert command.run_command(asked, str(disk / "run"), address=None, cpu_slots=None) == 0
    said = capsys.readouterr().out
    assert f"{CELLS - known} cells computed, {known} reused" in said
    assert (disk / "run" / "report.html").exists()
