"""The manifests people copy: valid where a schema ships offline, consistent with the project everywhere."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.runtime_env import RuntimeEnv

from jobs.run import run_command
from orchestrator.plan import expand
from orchestrator.spec import read_spec
from orchestrator.spec_error import SpecError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "jobs" / "deploy"


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def project_requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {r.name: r for r in map(Requirement, project["dependencies"])}


def test_cluster_launcher_file_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read_yaml("cluster.yaml"), schema)


def test_head_of_the_cluster_offers_no_slot() -> None:
    cluster = read_yaml("cluster.yaml")
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_runtime_environment_is_valid_and_carries_every_dependency_but_ray() -> None:
    """As constraints.txt pins it, where it does."""
    runtime_env = read_yaml("runtime_env.yaml")
    RuntimeEnv(**runtime_env)
    assert runtime_env["config"]["setup_timeout_seconds"] > 600
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    packages = {r.name: r for r in map(Requirement, runtime_env["pip"]["packages"])}
    for name, requirement in project_requirements().items():
        if name != "ray":  # the image's own
            assert packages[name].specifier == pins.get(name, requirement).specifier, name


def test_the_image_is_built_from_what_the_ignore_file_lets_through() -> None:
    """Without docker: every file that the Dockerfile copies is there and not ignored, and the packages are all copied."""
    copied = [
        name
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for name in line.split()[2:-1]
    ]
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) == let_through
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*project["license-files"], project["readme"], "jobs", "orchestrator", "workers"} <= set(copied)


def test_the_image_installs_in_a_folder_of_its_own_user() -> None:
    """The installation writes beside pyproject.toml, and a folder that WORKDIR makes is root's."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("WORKDIR ")]
    assert f"RUN mkdir -p {lines[place].removeprefix('WORKDIR ')}" in lines[:place]


def test_a_folder_that_goes_with_the_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    spec = read_spec(ROOT / "jobs/sweeps/demo.yaml")
    for out in ("runs/demo", str(copy / "run")):
        with pytest.raises(SpecError, match="copy of its working directory that Ray may delete"):
            run_command(spec, out, address=None, cpu_slots=None)
    assert list(copy.iterdir()) == []


def test_rayjob_is_a_driver_without_gpu_and_workers_with() -> None:
    job = read_yaml("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & set(spec)
    RuntimeEnv(**{k: v for k, v in yaml.safe_load(spec["runtimeEnvYAML"]).items() if k != "working_dir"})
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["rayVersion"] in str(project_requirements()["ray"].specifier) + ".0"
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            resources = container["resources"]
            assert int(resources["limits"]["nvidia.com/gpu"]) >= 1
            assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_monitor_reads_the_port_that_every_pod_of_the_job_names() -> None:
    monitor = read_yaml("podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    [asked] = monitor["spec"]["podMetricsEndpoints"]
    cluster = read_yaml("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert [port["containerPort"] for port in container["ports"] if port["name"] == asked["port"]] == [
            8080
        ]


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_sweep_file_to_copy_from_is_valid(path: Path) -> None:
    assert expand(read_spec(path))


def test_the_job_submits_a_sweep_file_that_exists() -> None:
    words = read_yaml("rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "jobs", "run"]
    assert (ROOT / words[4]).is_file()


def test_the_dashboard_asks_only_for_metrics_that_the_run_exports() -> None:
    exported = set(
        re.findall(r'"(oomline_\w+)"', (ROOT / "orchestrator" / "fleet" / "metrics.py").read_text())
    )
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(oomline_\w+)", target["expr"])
    }
    assert asked == exported
