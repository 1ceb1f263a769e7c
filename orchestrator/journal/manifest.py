"""What a number depends on besides the sweep file: code, packages, allocator, devices, and who ran when."""

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from workers.attempt import Device

_PACKAGES = ("torch", "transformers", "ray", "polars", "datasets", "nvidia-ml-py")
_ALLOCATOR = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "MALLOC_ARENA_MAX",
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Environment(_Model):
    """`allocator`: the variables that move a memory boundary, as the driver sees them; {} = defaults."""

    code_revision: str
    package_version: str
    python: str
    platform: str
    packages: dict[str, str]
    allocator: dict[str, str]

    @property
    def sets_cuda_allocator(self) -> bool:
        """Whether cells that ask for nothing run with other settings than torch's own."""
        return any(name.startswith("PYTORCH_") for name in self.allocator)


class DriverSession(_Model):
    """One driver's time on this folder. `state`: running | finished | stopped | failed | died."""

    started_at: float
    pid: int
    host: str = socket.gethostname()
    finished_at: float | None = None
    state: str = "running"
    note: str = ""


class Manifest(_Model):
    schema_version: int
    run_id: str
    name: str
    cells: int | None = None
    devices: tuple[Device, ...] = ()
    sessions: tuple[DriverSession, ...] = ()
    #: Path -> hash of the models' and the corpus's files where the driver ran; {} in folders of 0.1.
    files: dict[str, str] = {}
    environment: Environment

    @property
    def state(self) -> str:
        return self.sessions[-1].state if self.sessions else "unknown"


def environment() -> Environment:
    version = version_of("oomline")
    return Environment(
        code_revision=_revision() or f"oomline {version}",
        package_version=version,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version_of(name) for name in _PACKAGES},
        allocator={name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
    )


def version_of(package: str) -> str:
    """Return the version of an installed package, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str | None:
    """`git describe` of the checkout this code runs from; None where it runs from an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
