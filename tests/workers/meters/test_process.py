import mmap
import os
import subprocess
import sys

from workers.meters import MeterReading
from workers.meters.process import (
    DataPeak,
    ProcessMeter,
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


def anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_peak_of_data_is_exact_though_it_is_over():
    anonymous(128 * MiB).close()  # an earlier, higher peak
    before = own_memory().data
    peak = DataPeak()
    anonymous(64 * MiB).close()
    anonymous(32 * MiB).close()
    assert abs(peak.read() - before - 64 * MiB) < MiB // 4


def test_peak_of_data_leaves_out_what_is_not_data():
    before = own_memory().data
    peak = DataPeak()
    kept = anonymous(16 * MiB)
    shared = mmap.mmap(-1, 64 * MiB)
    assert abs(peak.read() - before - 16 * MiB) < MiB // 4
    kept.close()
    shared.close()


def test_meter_follows_a_process_until_it_is_gone():
    meter = ProcessMeter()
    assert meter.read() == MeterReading(None, None)
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
    assert meter.read() == MeterReading(None, None)  # a zombie
    child.communicate()
    assert meter.read() == MeterReading(None, None)
    assert unshared_resident_bytes(child.pid) == 0
    meter.leave()
    assert meter.read() == MeterReading(None, None)
