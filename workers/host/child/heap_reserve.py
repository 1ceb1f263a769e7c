"""Takes memory for small objects in advance, so that small allocations do not change the process's memory later.

Blocks of less than 128 KiB share glibc's heap, which grows by 2 MiB where it may use huge pages. Python's objects
share arenas of 1 MiB. Without a reserve, a run that needs a few KiB more than another one may hold a whole step more,
or may not, depending on how full the heap was. The reserve counts against the budget, as a context does on a card.

The heap's reserve is kept in pieces too small for a block that malloc would map by itself: a tensor that counts by the
page cannot lie in it.
"""

import ctypes
import functools
import itertools
import os
import sys

from workers.meters.process import ProcessMeter, own_memory

MiB = 2**20
#: Blocks of this size and more are mapped, and returned, one by one.
MAPPED_FROM = 128 * 2**10
HEAP_BYTES = 4 * MiB
PYTHON_BYTES = 3 * MiB

_PIECE = MAPPED_FROM - 64
_PIN = 16
#: The largest object that lies in Python's arenas. Of `_APART` such objects at least one lies in each arena.
_LARGEST = 512 - sys.getsizeof(b"")
_APART, _TOGETHER = 1024, 256

_pins: list[bytes] = []


def take_heap_reserve(since: int) -> None:
    """Take the reserve, once per process. `since`: bytes of data that the process held before. Raises `MemoryError`."""
    meter = ProcessMeter()  # the cheapest way to read: it is read a hundred times
    meter.follow(os.getpid())
    since += _data_and_stack(meter) - own_memory().data
    _take_heap(meter, since + HEAP_BYTES)
    _take_python(meter, since + HEAP_BYTES + PYTHON_BYTES)
    meter.leave()


def _data_and_stack(meter: ProcessMeter) -> int:
    held = meter.read().device_bytes
    assert held is not None  # of a process that lives
    return held


def _take_heap(meter: ProcessMeter, until: int) -> None:
    libc = _libc()
    pieces = []
    # Also to the end of what the heap grew by: its top is then no larger than a piece.
    while _data_and_stack(meter) < until or libc.mallinfo().keepcost >= _PIECE:
        piece = libc.malloc(_PIECE)
        if piece is None:
            raise MemoryError(f"no memory for {HEAP_BYTES} bytes of small blocks")
        pieces.append(piece)
    for piece, following in itertools.pairwise(sorted(pieces)):
        if following - piece <= MAPPED_FROM:  # no free block lies between them
            libc.realloc(piece, _PIN)  # frees the rest. What stays keeps two pieces from being merged


def _take_python(meter: ProcessMeter, until: int) -> None:
    objects = []
    while _data_and_stack(meter) < until:
        objects.append([bytes(_LARGEST) for _ in range(_TOGETHER)])
    _pins.extend(together[0] for together in objects[:: _APART // _TOGETHER])
    _pins.append(objects[-1][-1])


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mallinfo.restype = _MallInfo  # its int is wide enough here, and mallinfo2 is not in every glibc
    return libc
