"""Configures malloc, and limits how much data this process may hold. Both precede a cell on any device.

Every tensor on a CPU counts by the page: malloc maps blocks of 128 KiB and more, and returns freed memory at once.
glibc's defaults let that threshold drift to 32 MiB and keep holes. A cache that grows by concatenation then held 1.4
to 2.6 times its size, differently in every run; mapped blocks are exact to the page. Smaller blocks lie in memory of
their own (`heap_reserve`). The price is page faults: concatenating 16 MiB tensors took 1.35 times as long (with
`glibc.malloc.hugetlb`, which the fork server sets; 4.5 times without), 4 MiB ones 6 times.
"""

import ctypes
import gc
import resource
import threading

from workers.host.child.heap_reserve import MAPPED_FROM

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Python's threads get 8 MiB of data each otherwise.
_THREAD_STACK = 512 * 2**10
_ATTRIBUTES_BYTES = 64  # at least those of a pthread_attr_t


def configure_malloc() -> None:
    """Configure malloc so that memory use depends on live tensors only, not on the history of allocations. Call
    before any thread is started."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
    libc.mallopt(_M_TRIM_THRESHOLD, MAPPED_FROM)
    libc.mallopt(_M_ARENA_MAX, 1)
    threading.stack_size(_THREAD_STACK)
    gc.collect()
    libc.malloc_trim(0)


def small_thread_stacks() -> None:
    """Give the threads that libraries start from now on the stacks of Python's. The exchange with other processes of a cell
    starts three for each of its groups: at 8 MiB each they would be most of a small cell's data."""
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_THREAD_STACK))
    libc.pthread_setattr_default_np(attributes)
    libc.pthread_attr_destroy(attributes)


def limit_data(data: int) -> None:
    """Limit this process to `data` bytes of data."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data, hard))


def lift_data_limit() -> int:
    """Remove the limit, so that there is memory to report a failure. Returns the limit that was in force, in bytes."""
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return limit
