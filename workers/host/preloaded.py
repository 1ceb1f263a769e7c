"""Keeps other allocators than glibc's out of the processes that are measured.

A CPU cell's memory is that of glibc's malloc, as `child.limits` configures it. An allocator that LD_PRELOAD puts in its
place (jemalloc, tcmalloc) knows nothing of that: the heap reserve would never be filled.
"""

import ctypes
import os
import re
from collections.abc import Mapping

_ALLOCATORS = re.compile(r"jemalloc|tcmalloc|mimalloc|snmalloc|rpmalloc|hoard|scudo")
_GLIBC = re.compile(r"libc[.-]")


class ForeignAllocator(Exception):
    """Another malloc than glibc's is in this process. One line: whose, the remedy."""


def preloaded_allocators(environ: Mapping[str, str]) -> list[str]:
    """Return the allocators that LD_PRELOAD names."""
    return [name for name in _preloaded(environ) if _ALLOCATORS.search(os.path.basename(name))]


def without_allocators(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without the allocators that LD_PRELOAD names. Other libraries stay in it."""
    allocators = preloaded_allocators(environ)
    kept = [name for name in _preloaded(environ) if name not in allocators]
    rest = {name: value for name, value in environ.items() if name != "LD_PRELOAD"}
    return {**rest, "LD_PRELOAD": ":".join(kept)} if kept else rest


def refuse_foreign_allocator() -> None:
    """Raise `ForeignAllocator` unless this process's malloc is glibc's."""
    library = _library_of_malloc()
    if not _GLIBC.match(os.path.basename(library)):
        raise ForeignAllocator(
            f"malloc in this process is that of {library}: memory on a CPU is measured with glibc's; "
            "take it out of LD_PRELOAD or /etc/ld.so.preload"
        )


def _preloaded(environ: Mapping[str, str]) -> list[str]:
    return [name for name in re.split(r"[\s:]+", environ.get("LD_PRELOAD", "")) if name]


class _SymbolInfo(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    ]


def _library_of_malloc() -> str:
    libc = ctypes.CDLL(None)
    info = _SymbolInfo()
    malloc = ctypes.cast(libc.malloc, ctypes.c_void_p)
    if not libc.dladdr(malloc, ctypes.byref(info)):
        return "an unknown library"
    return os.fsdecode(info.file_name)
