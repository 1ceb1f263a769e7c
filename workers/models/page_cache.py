"""Whether files are in the page cache, so that a load time can be called warm or cold."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_FAILED = ctypes.c_void_p(-1).value


def resident_fraction(paths: Sequence[Path]) -> float | None:
    """The share of the pages of `paths` that are in memory, by mincore(2), which reads nothing itself.

    None for a file that this user may not write: of such the kernel tells nothing (it says that all is resident).
    """
    resident = pages = 0
    for path in paths:
        if not os.access(path, os.W_OK):
            return None
        flags = _resident_pages(path)
        resident += sum(flag & 1 for flag in flags)
        pages += len(flags)
    return resident / pages if pages else None


def _resident_pages(path: Path) -> bytes:
    """One byte per page of the file. Mapped shared and read-only, so that no data limit counts it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap {path}")
    flags = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    failed = _libc.mincore(address, size, flags)
    _libc.munmap(address, size)
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore {path}")
    return flags.raw
