"""What Prometheus reads from the driver's node."""

import subprocess
import sys


def test_a_scrape_shows_devices_cells_and_tokens(ray_head: str) -> None:
    """In a process of its own: Ray exports the metrics of a process's first connection only."""
    command = [sys.executable, "-m", "tests.orchestrator.fleet.metrics_driver", ray_head]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr
