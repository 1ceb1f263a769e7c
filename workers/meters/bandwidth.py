"""Measures how fast a device copies memory, and a processor multiplies: the rulers that a run's speed is held against.

A copy reads and writes each byte once; both count. `workers.meters.roofline` says what a decode has to read. A cell
whose rulers differ from those of its run's other cells ran on another machine, so to speak
(`orchestrator.tables.noise`).
"""

import contextlib
import mmap
import time

import torch

#: Of one buffer. On a card larger than any last-level cache. On a CPU two are four times the 32 MiB that eight cores of many
#: servers share: a copy of buffers which a cache holds in part is as fast as the neighbours leave it.
_CUDA_BYTES, _CPU_BYTES = 256 * 2**20, 64 * 2**20
_ROUNDS = 5
#: The product that every CPU child has computed before (`workers.host.child.cpu`): it takes no new memory in libraries.
_SIDE, _PRODUCTS = 256, 4


def copy_bandwidth(device: torch.device) -> float | None:
    """Return bytes per second of a copy, read plus written: the median of five on a card, the fastest of five on a CPU.
    None where there is no room for it.

    Nothing that it takes is held afterwards. Call without a data limit, on a card with its context created. Takes 25 ms on
    a CPU with huge pages, 5 ms on a card.
    """
    return _on_cuda(device) if device.type == "cuda" else _on_cpu()


def _on_cuda(device: torch.device) -> float | None:
    free, _ = torch.cuda.mem_get_info(device)
    if free < 4 * _CUDA_BYTES:
        return None
    try:
        both = torch.ones(2, _CUDA_BYTES // 4, dtype=torch.int32, device=device)
    except torch.OutOfMemoryError:  # an emulated card without room
        torch.cuda.empty_cache()
        return None
    source, sink = both.unbind()
    times = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        sink.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    del both, source, sink
    torch.cuda.empty_cache()
    return 2 * _CUDA_BYTES / _median(times)


def _on_cpu() -> float:
    """In a mapping of its own: the heap, on which a budget's accounts rest, does not move.

    The fastest round counts: the first one is slower by a tenth and more, and one in which the core was taken away tells
    nothing of the memory. What slows the memory all the time slows every round.
    """
    with mmap.mmap(-1, 2 * _CPU_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        with contextlib.suppress(OSError):  # a kernel without huge pages: slower to touch, nothing else
            room.madvise(mmap.MADV_HUGEPAGE)
        both = torch.frombuffer(room, dtype=torch.uint8).view(2, _CPU_BYTES)
        both.fill_(1)  # pages are there before the clock runs
        source, sink = both.unbind()
        times = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            sink.copy_(source)
            times.append(time.perf_counter() - began)
        del both, source, sink
    return 2 * _CPU_BYTES / min(times)


def matmul_flops() -> float:
    """Return floating-point operations per second of a product of two 256 x 256 float32 matrices: the fastest of
    five rounds of four, with as many threads as torch has now. For a CPU; 2 to 10 ms. Nothing is held afterwards."""
    size = 4 * _SIDE * _SIDE
    with mmap.mmap(-1, 3 * size) as room:
        a, b, out = torch.frombuffer(room, dtype=torch.float32).view(3, _SIDE, _SIDE).unbind()
        a.fill_(1.0)
        b.fill_(0.5)
        times = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            for _ in range(_PRODUCTS):
                torch.mm(a, b, out=out)
            times.append(time.perf_counter() - began)
        del a, b, out
    return 2 * _SIDE**3 * _PRODUCTS / min(times)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
