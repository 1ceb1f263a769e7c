"""Finds the outcome from the exception that was raised, or from how the process died. Pure. Logs are never searched.

CUDA, cuBLAS, cuDNN, glibc and oneDNN report out-of-memory with different exceptions and messages. All patterns are in
this file.
"""

import math
import re
import signal
from dataclasses import dataclass

from workers.attempt import Phase
from workers.outcome import Outcome

#: Parts of the messages of errors by which the device has no memory left.
_DEVICE_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "cudaErrorMemoryAllocation",
)
#: The same for the process's own memory, which is the device of a CPU cell.
_HOST_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "unable to mmap",
)
_DISK_MESSAGES = ("No space left on device", "Disk quota exceeded")
#: The whole message of oneDNN when it has no memory for a kernel's code. A longer one ("... descriptor for ...") is
#: about an operation that oneDNN does not know.
_NO_PRIMITIVE = "could not create a primitive"
#: Everything else that CUDA reports makes the context unusable.
_GPU_FAULT = re.compile(
    r"CUDA error: |CUBLAS_STATUS_|CUDNN_STATUS_|cudaError|device-side assert|uncorrectable ECC"
)

#: Errors of gloo, NCCL and torch's stores when another process is gone or does not answer.
_EXCHANGE = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (?:closed|reset) by peer|[Ss]tore.*timeout|wait timeout"
)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as plain text. `types`: the names of its classes, most special first."""

    types: tuple[str, ...]
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Raised":
        try:
            message = str(error)
        except Exception as failed:  # an error whose message cannot be read is still an error
            message = f"<no message: {type(failed).__name__}>"
        return cls(tuple(t.__name__ for t in type(error).__mro__), message)


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What an out-of-memory message says, in bytes. None: it does not say."""

    requested: int | None = None
    free: int | None = None
    allocated: int | None = None
    reserved: int | None = None


def is_memory_error(raised: Raised) -> bool:
    return _has_no_device_memory(raised) or _has_no_host_memory(raised)


def of_exception(raised: Raised, phase: Phase, *, is_cpu: bool) -> Outcome:
    """Return the outcome of a cell that ended in an exception. `is_cpu`: the process's own memory is the device's.
    Elsewhere running out of it is `oom_host`."""
    if _has_no_device_memory(raised) or (is_cpu and _has_no_host_memory(raised)):
        return oom_of(phase)
    if _has_no_host_memory(raised):
        return Outcome.OOM_HOST
    if {"Unavailable", "CorpusUnavailable"} & {*raised.types} or has_no_disk(raised):
        return Outcome.UNAVAILABLE
    if "ContextLimit" in raised.types:
        return Outcome.CONTEXT_LIMIT
    if _GPU_FAULT.search(raised.message):
        return Outcome.GPU_FAULT
    if phase in (Phase.SPAWN, Phase.LOAD) or {"LoadError", "CorpusError", "ModeUnsupported"} & {
        *raised.types
    }:
        return Outcome.LOAD_ERROR
    return Outcome.CRASHED


def of_death(wait_status: int, *, kernel_oom_kill: bool) -> tuple[Outcome, int | None, int | None]:
    """Return outcome, signal and exit code of a process that ended without a result, and that its host did not end.

    `kernel_oom_kill`: the kernel's OOM killer struck on this machine meanwhile.
    """
    number = wait_status & 0x7F
    if number == 0:
        return Outcome.CRASHED, None, wait_status >> 8
    if number == signal.SIGKILL and kernel_oom_kill:
        return Outcome.OOM_HOST, number, None
    return Outcome.CRASHED, number, None


def lost_a_peer(message: str) -> bool:
    """Whether a process ended in an error of its exchange with the others: another one may have ended before it."""
    return _EXCHANGE.search(message) is not None


def waits_for_a_peer(stacks: str | None) -> bool:
    """Whether a process's stacks show that it waits for the others."""
    return stacks is not None and "distributed_c10d" in stacks


def oom_of(phase: Phase) -> Outcome:
    """Return the out-of-memory outcome of a phase. Set-up, capture and warm-up count as load."""
    if phase is Phase.PREFILL:
        return Outcome.OOM_PREFILL
    return Outcome.OOM_DECODE if phase in (Phase.DECODE, Phase.DONE) else Outcome.OOM_LOAD


def memory_report(message: str) -> MemoryReport:
    """Read the sizes in a message of torch (in the wordings since 1.x), of CUDA or of the CPU allocator."""
    requested = _amount(r"Tried to allocate (?P<n>{size})", message)
    if requested is None:
        found = re.search(r"tried to allocate (\d{1,25}) bytes", message, re.IGNORECASE)
        requested = int(found.group(1)) if found else None
    allocated = _amount(r"(?P<n>{size}) (?:is|already) allocated", message)
    unallocated = _amount(r"(?P<n>{size}) is reserved by PyTorch but unallocated", message)
    reserved = _amount(r"(?P<n>{size}) reserved in total by PyTorch", message)
    if allocated is not None and unallocated is not None:
        reserved = allocated + unallocated
    free = _amount(r"of which (?P<n>{size}) is free", message)
    if free is None:
        free = _amount(r"; (?P<n>{size}) free", message)
    return MemoryReport(requested, free, allocated, reserved)


_SIZE = r"\d+(?:\.\d+)? (?:bytes|[KMGTP]iB)"
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}


def _amount(pattern: str, message: str) -> int | None:
    found = re.search(pattern.replace("{size}", _SIZE), message)
    if found is None:
        return None
    number, unit = found.group("n").split()
    amount = float(number) * _UNITS[unit]
    return round(amount) if math.isfinite(amount) else None


def _has_no_device_memory(raised: Raised) -> bool:
    if "OutOfMemoryError" in raised.types:
        return True
    return "Error" in "".join(raised.types) and any(text in raised.message for text in _DEVICE_MESSAGES)


def has_no_disk(raised: Raised) -> bool:
    return "OSError" in raised.types and any(text in raised.message for text in _DISK_MESSAGES)


def _has_no_host_memory(raised: Raised) -> bool:
    if "MemoryError" in raised.types:
        return True
    return raised.message == _NO_PRIMITIVE or any(text in raised.message for text in _HOST_MESSAGES)
