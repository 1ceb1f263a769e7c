"""The limits of one cell, set inside its process: what makes an out-of-memory real, and where it strikes.

On a CPU the budget is the process's own data limit and every tensor counts by the page: malloc is told to map
blocks of 128 KiB and more, and to hand freed memory back at once. glibc's defaults let that threshold drift to
32 MiB and keep holes: a cache that grows by concatenation then held 1.4 to 2.6 times its size, differently in every
run, where mapped blocks are exact to the page. Smaller blocks come and go in room of their own (`room`). The price is
page faults: concatenating 16 MiB tensors took 1.35 times as long (with `glibc.malloc.hugetlb`, which the fork server
sets; 4.5 times without), 4 MiB ones 6 times.
"""

import ctypes
import gc
import resource
import threading

import torch

from workers.host.child.heap_reserve import MAPPED_FROM
from workers.meters.process import own_memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Python's threads get 8 MiB of data each otherwise.
_THREAD_STACK = 512 * 2**10
#: Of a card: kernels that are loaded between two looks.
_LATER_KERNELS = 16 * 2**20
#: Enough for a matrix product to set up its library.
_SETUP = 256


def configure_malloc() -> None:
    """Memory use a function of what is alive. Before the first thread starts."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
    libc.mallopt(_M_TRIM_THRESHOLD, MAPPED_FROM)
    libc.mallopt(_M_ARENA_MAX, 1)
    threading.stack_size(_THREAD_STACK)
    gc.collect()
    libc.malloc_trim(0)


def limit_data(data: int) -> None:
    """From now on this process may hold `data` bytes of data, no more."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data, hard))


def lift_data_limit() -> int:
    """So that what went wrong can still be told. Returns the limit that was in force, in bytes of data."""
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return limit


def set_up_cpu(dtype: torch.dtype) -> int:
    """Let the math libraries take what they take once. Returns the growth of data in bytes."""
    before = own_memory().data
    square = torch.ones(_SETUP, _SETUP, dtype=dtype)
    torch.softmax(square @ square, dim=-1)
    qkv_BHTD = square[:, :64][None, None]
    torch.nn.functional.scaled_dot_product_attention(qkv_BHTD, qkv_BHTD, qkv_BHTD)
    del square, qkv_BHTD
    return own_memory().data - before


def set_up_cuda(dtype: torch.dtype, idle_bytes: int) -> int:
    """Create the context and load what every model calls. Returns what that holds of the card, above what others
    held, in bytes."""
    square = torch.ones(_SETUP, _SETUP, dtype=dtype, device="cuda")
    torch.nn.functional.layer_norm(square @ square, (_SETUP,))
    torch.softmax(torch.nn.functional.gelu(square).float(), dim=-1).argmax(dim=-1)
    torch.nn.functional.embedding(torch.zeros(2, dtype=torch.int64, device="cuda"), square)
    qkv_BHTD = square[:, :64][None, None]
    torch.cat(
        [torch.nn.functional.scaled_dot_product_attention(qkv_BHTD, qkv_BHTD, qkv_BHTD), qkv_BHTD], dim=-2
    )
    torch.cuda.synchronize()
    del square, qkv_BHTD
    torch.cuda.empty_cache()
    return _cuda_context_bytes(idle_bytes)


class EmulatedCard:
    """Holds torch's allocator to what a card of `budget` bytes would have left for it.

    The context grows while a model runs (CUDA loads kernels when they are first called, 2 MiB in eager mode, 80 MiB
    for captured graphs); `follow` takes that from the allocator, which returns what it merely caches before it gives
    up, as on a real card. A host that sees the card passed ends the process instead.
    """

    def __init__(self, budget: int, reserve_bytes: int, idle_bytes: int) -> None:
        self._for_process = budget - reserve_bytes - _LATER_KERNELS
        self._idle_bytes = idle_bytes
        self._context_bytes = -1
        self.allocator_bytes = 0
        self.follow()

    def follow(self) -> None:
        context_bytes = _cuda_context_bytes(self._idle_bytes)
        if context_bytes <= self._context_bytes:
            return
        self._context_bytes = context_bytes
        self.allocator_bytes = max(0, self._for_process - context_bytes)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.allocator_bytes / total))


def _cuda_context_bytes(idle_bytes: int) -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free - idle_bytes - torch.cuda.memory_reserved()
