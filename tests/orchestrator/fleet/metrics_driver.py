"""A driver that sets the metrics and reads them as Prometheus would: `python -m tests.orchestrator.fleet.metrics_driver ADDRESS`."""

import re
import sys
import time
import urllib.request

import ray

from orchestrator.fleet.connect import connected
from orchestrator.fleet.metrics import MeteredWatcher
from tests.orchestrator.sweep.simulated import EventLog
from tests.orchestrator.watch.test_watchers import ENDING, STORY

GiB = 2**30


def scrape() -> dict[str, float]:
    """Metric with its own tags -> value."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = {}
    for line in urllib.request.urlopen(url, timeout=5).read().decode().splitlines():
        match = re.match(r"ray_(oomline_\w+)\{(.*)\} (\S+)", line)
        if match and 'run="demo-1"' in match[2]:  # others have used this Ray before
            tags = re.findall(r'(slot|mode|engine|outcome)="([^"]*)"', match[2])
            found[f"{match[1]}{dict(sorted(tags)) or ''}"] = float(match[3])
    return found


def await_metric(name: str, value: float) -> dict[str, float]:
    until = time.monotonic() + 60
    while (found := scrape()).get(name) != value:
        assert time.monotonic() < until, found
        time.sleep(0.3)
    return found


def watch_and_scrape() -> None:
    seen = EventLog()
    watcher = MeteredWatcher(seen, "demo-1")
    for event in STORY:
        watcher.see(event)
    slot = "{'slot': 'n1/gpu0'}"
    found = await_metric(f"oomline_device_used_bytes{slot}", 6 * GiB)
    assert found[f"oomline_device_limit_bytes{slot}"] == 8 * GiB
    assert found[f"oomline_tokens_per_second{slot}"] == 99.5
    assert found[f"oomline_device_busy{slot}"] == 1
    assert found[f"oomline_device_power_watts{slot}"] == 412.5
    assert found[f"oomline_device_sm_clock_hertz{slot}"] == 1.755e9
    assert found[f"oomline_device_temperature_celsius{slot}"] == 63
    assert found[f"oomline_device_throttled{slot}"] == 1
    assert (found["oomline_cells_queued"], found["oomline_cells_running"], found["oomline_devices"]) == (
        20,
        1,
        1,
    )
    for event in ENDING:
        watcher.see(event)
    oom = "{'engine': 'graph', 'mode': 'baseline', 'outcome': 'oom_decode'}"
    found = await_metric(f"oomline_cells_total{oom}", 1)
    assert found["oomline_tokens_total{'engine': 'graph', 'mode': 'baseline'}"] == 16000
    assert found["oomline_energy_joules_total{'engine': 'graph', 'mode': 'baseline'}"] == 4000
    assert found[f"oomline_host_other_load_cores{slot}"] == 0.5
    assert found[f"oomline_device_busy{slot}"] == 0
    assert found[f"oomline_device_limit_bytes{slot}"] == 0
    assert found[f"oomline_device_throttled{slot}"] == 0
    assert seen.events == STORY + ENDING


if __name__ == "__main__":
    with connected(sys.argv[1]):
        watch_and_scrape()
