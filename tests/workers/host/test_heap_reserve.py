"""Small objects come and go in room that a cell's process takes at once; tensors count by the page."""

import json
import os
import subprocess
import sys

import pytest

from workers.host.child.heap_reserve import HEAP_BYTES, PYTHON_BYTES

KiB, MiB = 2**10, 2**20
SCRIPT = """
import json
import torch
from workers.host.child.limits import configure_malloc
from workers.host.child.heap_reserve import take_heap_reserve
from workers.meters.process import own_memory

configure_malloc()
data = {"before": own_memory().data}
take_heap_reserve(data["before"])
data["room"] = own_memory().data
objects = [bytes(300) for _ in range(4000)]
blocks = [torch.empty(1024 * (1 + 7 * n % 100), dtype=torch.uint8) for n in range(40)]
data["small"] = own_memory().data
tensors = [torch.empty(128 * 1024, dtype=torch.uint8) for _ in range(8)]
data["large"] = own_memory().data
del tensors
data["over"] = own_memory().data
print(json.dumps(data))
"""


@pytest.mark.parametrize("tunables", ["glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"])
def test_only_tensors_move_a_process_that_has_room_for_small_objects(tunables: str) -> None:
    environ = {**os.environ, "GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, check=True, timeout=120
    )
    data = json.loads(done.stdout)
    taken = data["room"] - data["before"]
    assert HEAP_BYTES + PYTHON_BYTES <= taken <= HEAP_BYTES + PYTHON_BYTES + 2 * MiB  # a heap's last step
    assert data["small"] == data["room"]  # 1.2 MiB of objects, 2 MiB of tensors
    assert data["large"] - data["small"] == 8 * (128 + 4) * KiB  # malloc's own word costs a page
    assert data["over"] == data["room"]
