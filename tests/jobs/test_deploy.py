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

from orchestrator.plan import expand
from orchestrator.spec import read_spec

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
    runtime_env = read_yaml("runtime_env.yaml")
    RuntimeEnv(**runtime_env)
    packages = {r.name: r for r in map(Requirement, runtime_env["pip"]["packages"])}
    for name, requirement in project_requirements().items():
        if name != "ray":  # the image's own
            assert packages[name].specifier == requirement.specifier, name


def test_rayjob_is_a_driver_without_gpu_and_workers_with() -> None:
    job = read_yaml("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & set(spec)
    RuntimeEnv(**{k: v for k, v in yaml.safe_load(spec["runtimeEnvYAML"]).items() if k != "working_dir"})
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] in str(project_requirements()["ray"].specifier) + ".0"
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            resources = container["resources"]
            assert int(resources["limits"]["nvidia.com/gpu"]) >= 1
            assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


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
