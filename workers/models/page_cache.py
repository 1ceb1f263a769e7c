"""Whether files are in the page cache, so that a load time can be called warm or cold."""

import os
from pathlib import Path

_PROBES = 64


def resident_fraction(paths: list[Path]) -> float | None:
    """The share of evenly spaced bytes of `paths` that the kernel can give without reading the disk.

    None where the file system cannot say. `RWF_NOWAIT` neither waits nor starts a read.
    """
    hits = probes = 0
    byte = bytearray(1)
    for path in paths:
        with open(path, "rb") as file:
            size = path.stat().st_size
            for index in range(_PROBES):
                probes += 1
                try:
                    hits += os.preadv(file.fileno(), [byte], size * index // _PROBES, os.RWF_NOWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    return None
    return hits / probes if probes else None
