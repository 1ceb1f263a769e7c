"""Nodes in network namespaces: one joins late, one is cut off for a while, one for good, one is killed."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.journal.journal import Journal
from tests.orchestrator.fleet.network import Network, network, why_not
from tests.orchestrator.fleet.partition_driver import CELLS
from workers.outcome import Outcome

REASON = why_not()


def _start_driver(net: Network, run: Path, hold: Path) -> subprocess.Popen[str]:
    """Start the sweep's driver on node 0. It ends once `hold` is gone and every cell has an outcome."""
    words = [
        sys.executable,
        "-m",
        "tests.orchestrator.fleet.partition_driver",
        net.address,
        str(run),
        str(hold),
    ]
    return subprocess.Popen(
        net.command(0, *words),
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.netns
@pytest.mark.skipif(REASON is not None, reason=REASON or "")
@pytest.mark.timeout(300)
def test_nodes_that_come_and_go(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with network() as net:
        net.start_node(0, cpus=0)
        driver = _start_driver(net, tmp_path / "run", hold)
        lines: list[str] = []

        def until(text: str, times: int = 1) -> None:
            """Read on until `text` came so often from here on."""
            assert driver.stdout is not None
            for line in driver.stdout:
                lines.append(line)
                times -= text in line
                if not times:
                    return
            raise AssertionError("".join(lines))

        net.start_node(1, cpus=1)
        until("10.97.13.2/cpu0 joined")
        until(" ok ", 2)
        net.start_node(2, cpus=1)
        until("10.97.13.3/cpu0 joined")
        until("10.97.13.3/cpu0 pocket", 2)

        net.cut(1)
        time.sleep(3)
        net.restore(1)
        until("10.97.13.2/cpu0 pocket", 2)
        assert not any(" left: " in line for line in lines), lines

        net.cut(1)
        net.start_node(3, cpus=1)
        until("10.97.13.2/cpu0 left: ")
        until("10.97.13.3/cpu0 pocket", 2)
        net.restore(1)

        until("10.97.13.4/cpu0 pocket", 2)
        net.kill(2)
        until("10.97.13.3/cpu0 left: ")
        hold.unlink()  # all that there was to see was seen
        until("cells computed")
        driver.wait(timeout=60)

    assert driver.returncode == 0
    attempts = Journal.open(tmp_path / "run", writable=False).attempts()
    counts = Counter(attempt.outcome for attempt in attempts)
    assert counts == {Outcome.OK: CELLS, Outcome.INFRA_ERROR: 2}
    assert len({attempt.cell.cell_id for attempt in attempts if attempt.outcome is Outcome.OK}) == CELLS
