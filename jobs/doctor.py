"""`oomline doctor`: what this machine or cluster offers, as text to paste into a report of a problem."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from orchestrator.fleet.connect import ConnectError, describe_cluster
from orchestrator.journal.manifest import environment
from orchestrator.journal.record import SCHEMA_VERSION
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
        "code": _code(),
        "free disk": _free_disk(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    if address or os.environ.get("RAY_ADDRESS"):
        try:
            found["cluster"] = describe_cluster(address)
        except ConnectError as error:
            raise SpecError(str(error)) from None
    found["readiness"] = _readiness(found)
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


def _code() -> dict[str, str]:
    here = environment()
    cuda = _cuda_of_torch()
    return {
        "revision": here.code_revision,
        "sources": here.sources,
        "run folders": f"schema version {SCHEMA_VERSION}",
        "torch is for": "CPUs alone" if cuda is None else f"CUDA {cuda}",
    }


def _cuda_of_torch() -> str | None:
    """Without importing torch, which takes seconds: from the file that its build has written."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda[^=]*= ['\"]([^'\"]+)", text, re.MULTILINE)
    return None if match is None else match[1]


def _free_disk() -> dict[str, str]:
    """Where runs, weights and temporary files go by default."""
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    places = {"here": Path.cwd(), "Hugging Face": hub, "temporary": Path(tempfile.gettempdir())}
    return {name: f"{_free(path)} in {path}" for name, path in places.items()}


def _free(path: Path) -> str:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return size_text(shutil.disk_usage(there).free)


def _readiness(found: dict[str, Any]) -> str:
    """One line: what runs here, or what is in the way."""
    missing = [
        name for name in ("torch", "transformers", "ray") if found["packages"][name] == "not installed"
    ]
    if missing:
        return f"not ready: {', '.join(missing)} not installed"
    if "cluster" in found:
        gpus = sum(int(node.get("GPU", 0)) for node in found["cluster"].values())
        return f"ready: {len(found['cluster'])} nodes of the cluster with {gpus} GPUs"
    cards = [gpu for gpu in found["gpus"].values() if "kind" in gpu]
    if cards and found["code"]["torch is for"] == "CPUs alone":
        return "not ready for its GPUs: the torch here is built for CPUs alone (docs/limits.md); cells on a CPU run"
    if cards:
        kinds = ", ".join(dict.fromkeys(gpu["kind"] for gpu in cards))
        return f"ready: {len(cards)} GPU{'s' * (len(cards) > 1)} ({kinds})"
    why = found.get("gpu driver", {}).get("nvidia", "none can be used")
    return f"ready: {found['machine']['cores']} CPU slots; no GPU: {why}"


def _as_text(found: dict[str, Any]) -> str:
    lines = []
    for section, content in found.items():
        if isinstance(content, str):
            lines.append(f"{section}: {content}")
            continue
        lines.append(f"{section}:" if content else f"{section}: none")
        for key, value in content.items():
            if isinstance(value, dict):
                lines.append(f"  {key}")
                lines.extend(f"    {name:<15} {text}" for name, text in value.items())
            else:
                lines.append(f"  {key:<17} {value}")
    return "\n".join(lines)
