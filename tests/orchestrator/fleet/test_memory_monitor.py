"""Ray's own memory monitor at work: whom it ends, and what becomes of the cells."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.journal.journal import Journal
from tests.orchestrator.fleet.memory_driver import CELLS, HOG_GIB
from workers.outcome import Outcome

#: From what is in use now to where the monitor acts: for Rays that are starting, this one and the other tests', too.
_ROOM = 4 * 2**30


@pytest.mark.timeout(180)
def test_the_hog_is_found_and_its_neighbours_run_again(tmp_path: Path) -> None:
    """The monitor may end a neighbour first, or both: who it was shows when each has its node to itself."""
    memory = psutil.virtual_memory()
    if memory.available < (HOG_GIB + 2) * 2**30:
        pytest.skip(f"needs {HOG_GIB + 2} GiB of free memory")
    level = (memory.total - memory.available + _ROOM) / memory.total
    # Twice a second: the memory of the one that was ended is free again when the monitor looks next.
    driver = subprocess.run(
        [sys.executable, "-m", "tests.orchestrator.fleet.memory_driver", str(tmp_path)],
        env=os.environ | {"RAY_memory_usage_threshold": f"{level:.4f}", "RAY_memory_monitor_refresh_ms": "500"},
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert driver.returncode == 0, driver.stdout + driver.stderr
    attempts = Journal.open(tmp_path, writable=False).attempts()
    stories: dict[bool, list[Outcome]] = {True: [], False: []}
    for attempt in attempts:
        stories[attempt.cell.corpus.startswith("grow")].append(attempt.outcome)
    hog, others = stories[True], stories[False]
    assert hog == [Outcome.INFRA_ERROR] * (len(hog) - 1) + [Outcome.OOM_HOST], driver.stdout
    assert others.count(Outcome.OK) == CELLS - 1
    assert set(others) <= {Outcome.OK, Outcome.INFRA_ERROR}
    told = [attempt.failure.error_message for attempt in attempts if attempt.failure is not None]
    assert told
    assert all("OutOfMemoryError" in message for message in told), told
