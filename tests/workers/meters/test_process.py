import mmap
import os
import subprocess
import sys

from workers.meters import Reading
from workers.meters.process import (
    ProcessMeter,
    data_peak,
    own_data_and_stack,
    own_memory,
    unshared_resident_bytes,
)

MiB = 2**20


def test_data_counts_private_memory_to_the_page():
    before = own_memory()
    block = mmap.mmap(-1, 64 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert own_memory().data - before.data == 64 * MiB
    block.close()
    assert own_memory().data == before.data


def test_peak_of_data_is_exact_though_it_is_over():
    # Rise above whatever this process peaked at before, so that its mark moves.
    base = own_memory()
    room = base.peak_virtual - base.virtual
    before = own_memory()
    block = mmap.mmap(-1, room + 64 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.close()
    peak = data_peak(before, own_memory())
    assert peak is not None
    assert abs(peak - before.data - room - 64 * MiB) < MiB


def test_peak_of_data_is_unknown_below_an_earlier_peak():
    block = mmap.mmap(-1, 64 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.close()
    before = own_memory()
    block = mmap.mmap(-1, 16 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.close()
    assert data_peak(before, own_memory()) is None


def test_meter_follows_a_process_until_it_is_gone():
    meter = ProcessMeter()
    assert meter.read() == Reading(None, None)
    meter.follow(os.getpid())
    data, resident = meter.read()
    assert abs(data - own_data_and_stack()) < MiB
    assert resident > 0

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    meter.follow(child.pid)
    assert 0 < meter.read().process_bytes < resident
    assert unshared_resident_bytes(child.pid) > 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert meter.read() == Reading(None, None)  # a zombie
    child.communicate()
    assert meter.read() == Reading(None, None)
    assert unshared_resident_bytes(child.pid) == 0
    meter.leave()
    assert meter.read() == Reading(None, None)
