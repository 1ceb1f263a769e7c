"""Real messages of torch, CUDA and the C++ library, and deaths, to outcomes."""

import errno
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.attempt import Phase
from workers.error_kinds import MemoryReport, Raised, memory_report, of_death, of_exception
from workers.models import Unavailable
from workers.outcome import Outcome
from workers.text import CorpusUnavailable

MiB, GiB = 2**20, 2**30

CUDA_2_X = (
    "CUDA out of memory. Tried to allocate 226.00 MiB. GPU 0 has a total capacity of 15.70 GiB of which 210.38 MiB "
    "is free. Including non-PyTorch memory, this process has 15.48 GiB memory in use. Of the allocated memory 14.81 "
    "GiB is allocated by PyTorch, and 336.73 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
CUDA_LIMITED = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 131.02 GiB is "
    "free. 7.37 GiB allowed; Of the allocated memory 6.01 GiB is allocated by PyTorch, and 512 bytes is reserved by "
    "PyTorch but unallocated."
)
CUDA_1_X = (
    "CUDA out of memory. Tried to allocate 10.73 GiB (GPU 0; 8.00 GiB total capacity; 17.20 GiB already allocated; "
    "0 bytes free; 19.15 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4194304 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            CUDA_2_X,
            MemoryReport(
                226 * MiB,
                round(210.38 * MiB),
                round(14.81 * GiB),
                round(14.81 * GiB) + round(336.73 * MiB),
            ),
        ),
        (
            CUDA_LIMITED,
            MemoryReport(2 * GiB, round(131.02 * GiB), round(6.01 * GiB), round(6.01 * GiB) + 512),
        ),
        (CUDA_1_X, MemoryReport(round(10.73 * GiB), 0, round(17.2 * GiB), round(19.15 * GiB))),
        (CPU, MemoryReport(requested=4194304)),
        ("CUDA error: out of memory", MemoryReport()),
    ],
)
def test_memory_report(message, expected):
    assert memory_report(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        "Tried to allocate 1.2.3 GiB",
        f"Tried to allocate {'9' * 400}.0 GiB",
        f"you tried to allocate {'9' * 5000} bytes",
    ],
)
def test_an_amount_that_is_no_number_is_no_amount(message):
    assert memory_report(message).requested is None


@given(st.text())
def test_any_message_is_read_without_an_error(message):
    memory_report(message)
    of_exception(Raised(("RuntimeError", "Exception"), message), Phase.DECODE, is_cpu=False)


def caught(action) -> Raised:
    with pytest.raises((RuntimeError, MemoryError)) as info:
        action()
    return Raised.of(info.value)


@pytest.mark.parametrize(
    "raised",
    [
        Raised.of(torch.OutOfMemoryError(CUDA_2_X)),
        Raised.of(
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
        ),
        Raised.of(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ],
)
@pytest.mark.parametrize("is_cpu", [True, False])
def test_device_memory_is_an_oom_of_the_phase(raised, is_cpu):
    outcomes = [of_exception(raised, phase, is_cpu=is_cpu) for phase in Phase]
    assert outcomes == [
        Outcome.OOM_LOAD,
        Outcome.OOM_LOAD,
        Outcome.OOM_LOAD,
        Outcome.OOM_PREFILL,
        Outcome.OOM_DECODE,
        Outcome.OOM_DECODE,
    ]


@pytest.mark.parametrize(
    "raised",
    [
        caught(lambda: torch.empty(2**60, dtype=torch.uint8)),
        caught(lambda: bytearray(2**62)),
        Raised.of(RuntimeError("std::bad_alloc")),
        Raised.of(OSError(12, "Cannot allocate memory")),
        Raised.of(RuntimeError("could not create a primitive")),
    ],
)
def test_process_memory_is_the_device_of_a_cpu_only(raised):
    assert of_exception(raised, Phase.DECODE, is_cpu=True) is Outcome.OOM_DECODE
    assert of_exception(raised, Phase.DECODE, is_cpu=False) is Outcome.OOM_HOST


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    ],
)
def test_poisoned_context(message):
    assert of_exception(Raised.of(RuntimeError(message)), Phase.DECODE, is_cpu=False) is Outcome.GPU_FAULT


def test_anything_else_is_a_load_error_while_loading_and_a_crash_later():
    raised = Raised.of(ValueError("no"))
    assert of_exception(raised, Phase.LOAD, is_cpu=True) is Outcome.LOAD_ERROR
    assert of_exception(raised, Phase.PREPARE, is_cpu=True) is Outcome.CRASHED
    assert of_exception(raised, Phase.DECODE, is_cpu=True) is Outcome.CRASHED


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("org/model: the hub did not answer"),
        CorpusUnavailable("corpus pg-19: no connection"),
        OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
@pytest.mark.parametrize("phase", [Phase.SPAWN, Phase.LOAD, Phase.PREPARE])
def test_what_is_outside_the_model_is_unavailable(error, phase):
    assert of_exception(Raised.of(error), phase, is_cpu=True) is Outcome.UNAVAILABLE


def test_deaths():
    assert of_death(signal.SIGSEGV, kernel_oom_kill=False) == (Outcome.CRASHED, signal.SIGSEGV, None)
    assert of_death(signal.SIGKILL, kernel_oom_kill=False) == (Outcome.CRASHED, signal.SIGKILL, None)
    assert of_death(signal.SIGKILL, kernel_oom_kill=True) == (Outcome.OOM_HOST, signal.SIGKILL, None)
    assert of_death(signal.SIGABRT | 0x80, kernel_oom_kill=True) == (Outcome.CRASHED, signal.SIGABRT, None)
    assert of_death(3 << 8, kernel_oom_kill=False) == (Outcome.CRASHED, None, 3)
    assert of_death(0, kernel_oom_kill=False) == (Outcome.CRASHED, None, 0)
