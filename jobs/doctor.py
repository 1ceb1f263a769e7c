"""`oomline doctor`: what this machine or cluster offers, as text to paste into a report of a problem."""

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import psutil

from orchestrator.fleet.connect import ConnectError, describe_cluster
from orchestrator.spec_error import SpecError
from workers.meters.nvml import Card, MemorySource, NoDevice, list_uuids
from workers.units import size_text

_PACKAGES = (
    *("oomline", "ray", "torch", "transformers", "datasets", "nvidia-ml-py", "polars", "triton"),
    *("tokenizers", "safetensors", "pydantic", "gguf", "s3fs"),
)
_ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("RAY_ADDRESS", "HF_HUB_OFFLINE", "HF_HOME", "OMP_NUM_THREADS"),
)
_MEMORY_SOURCES = {
    MemorySource.NVML: "NVML",
    MemorySource.NVML_V1: "NVML's first version: the driver's reserve counts as in use",
    MemorySource.HOST: "the machine: CPU and GPU share memory, and NVML does not tell the GPU's part",
}


def examine(address: str | None, *, as_json: bool) -> str:
    """This machine, and the cluster at `address` or RAY_ADDRESS where there is one. Raises `SpecError`."""
    found: dict[str, Any] = {
        "machine": _machine(),
        **_gpus(),
        "packages": _packages(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    if address or os.environ.get("RAY_ADDRESS"):
        try:
            found["cluster"] = describe_cluster(address)
        except ConnectError as error:
            raise SpecError(str(error)) from None
    return json.dumps(found, indent=2) if as_json else _as_text(found)


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "cores": str(psutil.cpu_count()),
        "memory": f"{size_text(memory.total)}, {size_text(memory.available)} available",
    }


def _gpus() -> dict[str, dict[str, Any]]:
    """By UUID; without any, the reason beside them."""
    try:
        uuids = list_uuids()
    except NoDevice as error:
        return {"gpus": {}, "gpu driver": {"nvidia": str(error)}}
    return {"gpus": {uuid or f"card {index}": _gpu(uuid) for index, uuid in enumerate(uuids)}}


def _gpu(uuid: str) -> dict[str, str]:
    if not uuid:
        return {"not usable": "the NVIDIA driver does not find it any more"}
    try:
        card = Card(uuid)
        memory, processes = card.memory(), card.processes()
    except NoDevice as error:
        return {"not usable": str(error)}
    if processes is None:
        shown = "not listed by the driver"
    elif any(process.used_bytes is None for process in processes):
        shown = "listed, memory per process hidden"
    else:
        shown = "visible"
    return {
        "kind": card.kind,
        "driver": card.driver_version,
        "memory": f"{size_text(memory.total_bytes)}, {size_text(memory.used_bytes)} in use, "
        f"{size_text(memory.reserve_bytes)} held by the driver",
        "memory read from": _MEMORY_SOURCES[card.memory_source],
        "process memory": shown,
        "processes": ", ".join(str(process.pid) for process in processes or ()) or "none",
    }


def _packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _as_text(found: dict[str, Any]) -> str:
    lines = []
    for section, content in found.items():
        lines.append(f"{section}:" if content else f"{section}: none")
        for key, value in content.items():
            if isinstance(value, dict):
                lines.append(f"  {key}")
                lines.extend(f"    {name:<15} {text}" for name, text in value.items())
            else:
                lines.append(f"  {key:<17} {value}")
    return "\n".join(lines)
