from pathlib import Path

import pytest

from workers.meters.host_memory import HostMemory, host_memory, kernel_oom_kills

GiB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 16 GiB with a quarter in use."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {12 * 2**20} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cgroup_v2(root: Path, bound: str, used: int, cache: int) -> None:
    folder = root / "sys/fs/cgroup"
    write(folder / "memory.max", f"{bound}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 1\ninactive_file {cache}\n")


def test_plain_machine(root):
    assert host_memory(root) == HostMemory(4 * GiB, 16 * GiB)


def test_the_fuller_of_machine_and_container_counts(root):
    cgroup_v2(root, str(4 * GiB), 3 * GiB, GiB)
    assert host_memory(root) == HostMemory(2 * GiB, 4 * GiB)
    cgroup_v2(root, str(12 * GiB), 2 * GiB, 0)
    assert host_memory(root) == HostMemory(4 * GiB, 16 * GiB)


def test_container_without_a_bound(root):
    cgroup_v2(root, "max", 15 * GiB, 0)
    assert host_memory(root) == HostMemory(4 * GiB, 16 * GiB)


@pytest.mark.parametrize(("bound", "expected"), [(8 * GiB, 6 * GiB), (2**63 - 4096, 4 * GiB)])
def test_cgroup_v1(root, bound, expected):
    folder = root / "sys/fs/cgroup/memory"
    write(folder / "memory.limit_in_bytes", str(bound))
    write(folder / "memory.usage_in_bytes", str(7 * GiB))
    write(folder / "memory.stat", f"cache 5\ntotal_inactive_file {GiB}\n")
    assert host_memory(root).used_bytes == expected


def test_this_machine():
    memory = host_memory()
    assert 0 < memory.used_bytes < memory.total_bytes
    assert kernel_oom_kills() >= 0
