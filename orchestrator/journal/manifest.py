"""What a number depends on besides the sweep file: code, packages, allocator, devices, and who ran when."""

import hashlib
import os
import platform
import socket
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from workers.attempt import Device

_PACKAGES = ("torch", "transformers", "ray", "polars", "datasets", "nvidia-ml-py")
_ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("orchestrator", "workers")
_ALLOCATOR = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "MALLOC_ARENA_MAX",
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Environment(_Model):
    """`allocator`: the variables that move a memory boundary, as the driver sees them; {} = defaults. `sources`: hash of
    the Python files that measure, predict and report, equal where the code is; "" in folders of 0.1."""

    code_revision: str
    sources: str = ""
    package_version: str
    python: str
    platform: str
    packages: dict[str, str]
    allocator: dict[str, str]

    def differences(self, other: "Environment") -> list[str]:
        """Return what `other` has otherwise, as it has it: `torch 2.13.0`. Of the same sources the revision says nothing."""
        before, now = self._by_name(), other._by_name()
        if self.sources and self.sources == other.sources:
            del now["code"]
        return [f"{name} {now[name]}" for name in now if before.get(name, now[name]) != now[name]]

    def _by_name(self) -> dict[str, str]:
        code = f"{self.code_revision} (sources {self.sources})" if self.sources else self.code_revision
        allocator = ", ".join(f"{name}={value}" for name, value in self.allocator.items())
        return {
            "code": code,
            "Python": self.python,
            **self.packages,
            "allocator": allocator or "torch's defaults",
        }

    @property
    def sets_cuda_allocator(self) -> bool:
        """Whether cells that ask for nothing run with other settings than torch's own."""
        return any(name.startswith("PYTORCH_") for name in self.allocator)


class DriverSession(_Model):
    """One driver's time on this folder. `state`: running | finished | stopped | failed | died. `environment`: None in
    folders of 0.1."""

    started_at: float
    pid: int
    host: str = socket.gethostname()
    finished_at: float | None = None
    state: str = "running"
    note: str = ""
    environment: Environment | None = None


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

    def other_sessions(self) -> list[str]:
        """Return a sentence for each session that ran with other code or packages than the last one."""
        found = []
        for number, session in enumerate(self.sessions[:-1], 1):
            differences = (
                [] if session.environment is None else self.environment.differences(session.environment)
            )
            if differences:
                found.append(f"Session {number} ran with {', '.join(differences)}.")
        return found


def environment() -> Environment:
    version = version_of("oomline")
    return Environment(
        code_revision=_revision() or f"oomline {version}",
        sources=_sources(),
        package_version=version,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version_of(name) for name in _PACKAGES},
        allocator={name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
    )


def version_of(package: str) -> str:
    """Return the version of an installed package, or `not installed`. Of this project where it is not installed, as in a
    submitted job: that of the pyproject.toml beside the code."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return (_version_beside_the_code() if package == "oomline" else None) or "not installed"


def _version_beside_the_code() -> str | None:
    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"]) if project["name"] == "oomline" else None
    except (OSError, KeyError, ValueError):
        return None


def _revision() -> str | None:
    """`git describe` of the checkout that this code runs from; else what OOMLINE_REVISION says: the working directory of a
    job and an image come without `.git`. None where neither is there."""
    if not (_ROOT / ".git").exists():
        return os.environ.get("OOMLINE_REVISION") or None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("OOMLINE_REVISION") or None


def _sources() -> str:
    """Twelve digits of a hash of these rooms' Python files, by their names."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((_ROOT / room).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
