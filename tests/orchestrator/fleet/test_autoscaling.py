"""A cluster that grows on demand (Ray's autoscaler with a provider that fakes nodes): work asks for GPUs, its end does not."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.fleet import SlotReady
from orchestrator.fleet.connect import ConnectError, Target, connected, probe
from tests.orchestrator.fleet.actors import GpuActor
from tests.orchestrator.fleet.test_ray_fleet import count, fleet_of, gather


@pytest.fixture
def autoscaling() -> Iterator[str]:
    """The address of a head without GPU that may start up to two nodes of one GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"  # Ray does not listen on the loopback
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{f"{part}_commands": [] for part in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    }
    with tempfile.TemporaryDirectory(prefix="ooma-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "autoscaling.yaml"
        file.write_text(json.dumps(config))
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
                *(
                    f"--port={port}",
                    f"--autoscaling-config={file}",
                    "--include-dashboard=false",
                    "--disable-usage-stats",
                ),
                *("--object-store-memory=80000000", f"--temp-dir={folder}/ray"),
            ],
            env=os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _await(address)
            yield address
        finally:
            family = [*psutil.Process(head.pid).children(recursive=True), head]
            for process in family:
                process.kill()
            head.wait()


def _await(address: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            return probe(Target(address, "test"))
        except ConnectError:
            assert time.monotonic() < until
            time.sleep(0.3)


@pytest.mark.timeout(180)
def test_work_brings_gpus_and_its_end_asks_for_none(autoscaling: str) -> None:
    with connected(autoscaling), fleet_of(GpuActor) as fleet:
        fleet.poll(1.0)
        assert fleet.waiting_for() == "no device in the cluster"
        fleet.demand(2)
        gather(fleet, count(SlotReady, 2), limit_s=120)
        fleet.demand(0)
        fleet.poll(0.1)
        assert fleet._lacking() == 0
