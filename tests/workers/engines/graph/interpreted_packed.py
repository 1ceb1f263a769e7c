"""Run as a process of its own, with TRITON_INTERPRET=1: the kernels of packed caches against their twins, on a CPU. Prints one
line per comparison; ends with an error if one is out of bounds."""

import importlib

import torch

from tests.workers.engines.graph.packed_twins import alike
from tests.workers.engines.graph.tiny import build
from workers.engines.graph.families import describe
from workers.engines.shared.slots import RingSlots
from workers.kv_dtype import STORED_AS

check = importlib.import_module("tests.workers.engines.graph.interpreted").check
# Few enough programs that each has several blocks to read.
tiles = importlib.import_module("workers.engines.graph.kernels.attend_packed_tiles")
tiles.multiprocessors = lambda device: 3

if __name__ == "__main__":
    for stored in STORED_AS.values():
        for family, ring in (("llama", None), ("neox", RingSlots(4, 100, 127))):
            weights = describe(build(family, torch.float32, layers=1).model)
            alike(check, weights, stored, ring, 1e-5, (64, 60, 5, 70, 3))
