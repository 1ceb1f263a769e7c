"""A device as the predictions see it: its memory, what is gone before the first weight, how its allocator
rounds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from workers.attempt import Device
from workers.host.child.heap_reserve import HEAP_BYTES, MAPPED_FROM, PYTHON_BYTES

MiB = 2**20

Allocator = Literal["cuda", "cpu"]

#: NVML name prefix -> memory bandwidth, bytes per second, by the vendors' data sheets. First match rules.
_BANDWIDTH = (
    ("NVIDIA B300", 8.0e12),
    ("NVIDIA B200", 8.0e12),
    ("NVIDIA GB200", 8.0e12),
    ("NVIDIA H200", 4.8e12),
    ("NVIDIA GH200", 4.0e12),
    ("NVIDIA H100 NVL", 3.9e12),
    ("NVIDIA H100 PCIe", 2.0e12),
    ("NVIDIA H100", 3.35e12),
    ("NVIDIA A100-SXM4-80GB", 2.04e12),
    ("NVIDIA A100 80GB", 1.94e12),
    ("NVIDIA A100", 1.56e12),
    ("NVIDIA RTX PRO 6000", 1.79e12),
    ("NVIDIA RTX 6000 Ada", 0.96e12),
    ("NVIDIA L40S", 0.864e12),
    ("NVIDIA L4", 0.3e12),
    ("NVIDIA A10", 0.6e12),
    ("NVIDIA GeForce RTX 5090", 1.79e12),
    ("NVIDIA GeForce RTX 4090", 1.01e12),
    ("NVIDIA GeForce RTX 3090", 0.94e12),
    ("Tesla V100", 0.9e12),
    ("Tesla T4", 0.3e12),
    ("cpu", 2.0e10),
)
_UNKNOWN_GPU = 0.5e12

#: Device memory of a CUDA context with cuBLAS and first kernels loaded, until it was measured: of an H200,
#: driver 580, torch 2.11. Other cards of the last years hold 0.4 to 0.7 GiB.
_CONTEXT_BYTES = 693 * MiB

#: The workspace that torch hands cuBLAS from its own allocator, by default
#: (aten/src/ATen/cuda/CublasHandlePool.cpp).
_CUBLAS_BYTES, _CUBLAS_HOPPER_BYTES = 4096 * 2**10 * 2 + 16 * 2**10 * 8, 4096 * 2**10 * 8
_HOPPER = ("NVIDIA H100", "NVIDIA H200", "NVIDIA H20", "NVIDIA H800", "NVIDIA GH200")
#: A CPU process takes room for its small objects at once (`workers.host.child.heap_reserve`); what the objects leave
#: of it holds tensors of less than 128 KiB. Measured.
_SMALL_TENSORS_BYTES = 3 * MiB
#: Of a mapped block: malloc's own word, and torch's alignment.
_MAPPED_HEADER = 64 + 32
#: Kernels that load in an eager run's first pass, beyond what the set-up of a cell has loaded. Measured on an H100 and an H200.
FIRST_PASS_KERNELS = 2 * MiB
#: Device memory that NCCL takes for its buffers, of each card of a cell that has several. Measured by
#: `python -m tests.benchmarks.devices` on two H200 with NVLink, torch 2.11; of four and eight not measured yet.
_NCCL_BYTES = 842 * MiB
#: What an emulated card keeps free for kernels that load later (`workers.host.child.cuda`).
_LATER_KERNELS = 16 * MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """`reserve_bytes`: the driver's own; `context_bytes`: of an idle context, above that; both gone for any
    process.

    `runtime_bytes`: what the libraries take, from the same allocator as the tensors, once a model runs.
    """

    kind: str
    total_bytes: int
    reserve_bytes: int
    context_bytes: int
    runtime_bytes: int
    bandwidth_bytes_per_s: float
    context_is_measured: bool = False

    @classmethod
    def of(cls, device: Device, context_bytes: int | None = None) -> "DeviceProfile":
        """`context_bytes`: as measured on this kind (`Attempt.context_bytes`), None before any was."""
        is_cpu = device.kind == "cpu"
        return cls(
            kind=device.kind,
            total_bytes=device.total_bytes,
            reserve_bytes=device.reserve_bytes,
            context_bytes=context_bytes if context_bytes is not None else 0 if is_cpu else _CONTEXT_BYTES,
            runtime_bytes=_runtime_bytes(device.kind),
            bandwidth_bytes_per_s=bandwidth(device.kind),
            context_is_measured=context_bytes is not None,
        )

    @property
    def allocator(self) -> Allocator:
        return "cpu" if self.kind == "cpu" else "cuda"

    def peers_bytes(self, devices: int) -> int:
        """What NCCL takes of each of a cell's cards. A context that was measured in such a cell has it in it."""
        if devices == 1 or self.allocator == "cpu" or self.context_is_measured:
            return 0
        return _NCCL_BYTES

    def capacity(self, budget: int | None) -> int:
        """Bytes a process may hold, its context included, on the (emulated) card."""
        if budget is None:
            return self.total_bytes - self.reserve_bytes
        held_back = _LATER_KERNELS if self.allocator == "cuda" else 0
        return min(budget - held_back, self.total_bytes) - self.reserve_bytes


def bandwidth(kind: str) -> float:
    """Bytes per second of device memory, by NVML's name of it."""
    return next((rate for prefix, rate in _BANDWIDTH if kind.startswith(prefix)), _UNKNOWN_GPU)


def _runtime_bytes(kind: str) -> int:
    if kind == "cpu":
        return HEAP_BYTES + PYTHON_BYTES
    return _CUBLAS_HOPPER_BYTES if kind.startswith(_HOPPER) else _CUBLAS_BYTES


def held(tensors: Iterable[tuple[int, int]], device: DeviceProfile) -> int:
    """Bytes of the device that live tensors keep from others. `tensors`: (bytes, how many of that size).

    CUDA, torch's caching allocator without `expandable_segments` (c10/cuda/CUDACachingAllocator.cpp): at most
    1 MiB in shared 2 MiB segments; below 10 MiB in shared segments of 20 MiB; above, a segment of their own,
    rounded up to 2 MiB. Before it gives up, the allocator returns every segment that is wholly free, so at
    the boundary this is what counts. CPU: malloc maps large blocks by the page, its own header in front; the
    small ones fill the room that the process holds anyway.
    """
    small = total = 0
    if device.allocator == "cpu":
        for size, count in tensors:
            if size < MAPPED_FROM:
                small += size * count
            else:
                total += _up(size + _MAPPED_HEADER, 4096) * count
        return total + max(0, small - _SMALL_TENSORS_BYTES)
    for size, count in tensors:
        if size <= MiB:
            small += _up(size, 512) * count
        elif size < 10 * MiB:
            total += _up(count, 20 * MiB // size) // (20 * MiB // size) * 20 * MiB
        else:
            total += _up(size, 2 * MiB) * count
    return total + _up(small, 2 * MiB)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
