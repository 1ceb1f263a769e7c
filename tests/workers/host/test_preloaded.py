"""Another allocator in LD_PRELOAD: cells are measured under glibc's all the same, or are refused in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.host.preloaded import preloaded_allocators, without_allocators

JEMALLOC = next(Path("/usr/lib").glob("*/libjemalloc.so.2"), None)
RUN = """
import json, sys
from tests.workers.host.cells import lease
from workers.host.device_host import DeviceHost
host = DeviceHost("node/cpu0", 2**30, preload=["workers.engines.eager", "workers.host.child.run"])
try:
    print("left out:", host.describe().allocators_left_out)
    attempt = host.run(lease(sys.argv[1], length=20))
    print("outcome:", attempt.outcome, attempt.peak_device_bytes)
except Exception as error:
    print("refused:", error)
host.close()
"""


def test_only_allocators_are_left_out_of_ld_preload() -> None:
    environ = {
        "LD_PRELOAD": "/opt/libjemalloc.so.2 libfaketime.so:/usr/lib/libtcmalloc_minimal.so.4",
        "A": "1",
    }
    assert preloaded_allocators(environ) == ["/opt/libjemalloc.so.2", "/usr/lib/libtcmalloc_minimal.so.4"]
    assert without_allocators(environ) == {"LD_PRELOAD": "libfaketime.so", "A": "1"}


@pytest.mark.parametrize("environ", [{}, {"LD_PRELOAD": ""}, {"LD_PRELOAD": " : "}])
def test_nothing_preloaded_is_no_allocator(environ: dict[str, str]) -> None:
    assert preloaded_allocators(environ) == []
    assert "LD_PRELOAD" not in without_allocators(environ)


def run(model: str, preload: str) -> str:
    environ = os.environ | {"LD_PRELOAD": preload}
    done = subprocess.run(
        [sys.executable, "-c", RUN, model],
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(JEMALLOC is None, reason="needs jemalloc (Debian: libjemalloc2)")
def test_a_cell_under_a_preloaded_allocator_is_measured_as_without_it(model: str) -> None:
    """To 1 %: the peak of one and the same process is a heap's step of 64 KiB off now and then."""
    left_out, preloaded = run(model, str(JEMALLOC)).splitlines()
    assert left_out == f"left out: {JEMALLOC}"
    with_none, plain = run(model, "").splitlines()
    assert with_none == "left out: None"
    *ended, peak = preloaded.split()
    assert ended == ["outcome:", "ok"]
    assert int(peak) == pytest.approx(int(plain.split()[-1]), rel=0.01)


@pytest.mark.skipif(JEMALLOC is None, reason="needs jemalloc (Debian: libjemalloc2)")
def test_an_allocator_of_an_unknown_name_is_refused_in_one_line(model: str, tmp_path: Path) -> None:
    hidden = tmp_path / "libother.so"
    shutil.copy(JEMALLOC or "", hidden)
    told = run(model, str(hidden))
    assert told.startswith(
        f"refused: fork server does not start: ForeignAllocator: malloc in this process is that of {hidden}"
    )
    assert "LD_PRELOAD" in told
    assert told.count("\n") == 1
