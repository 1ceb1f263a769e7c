"""From what was raised, or how the process died, to an outcome. Pure; never by grepping logs.

An out-of-memory comes in several coats; the list is kept here and nowhere else.
"""

import math
import re
import signal
from dataclasses import dataclass

from workers.attempt import Phase
from workers.outcome import Outcome

#: Messages of RuntimeErrors that mean: the device has no memory left.
_DEVICE_COATS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "cudaErrorMemoryAllocation",
)
#: The same for the process's own memory, which is the device of a CPU cell.
_HOST_COATS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "unable to mmap",
)
#: oneDNN has its kernel's description by then and finds no memory for its code. As the whole message: what goes on
#: ("... descriptor for ...") is an operation that it does not know.
_NO_PRIMITIVE = "could not create a primitive"
#: Anything else that CUDA reports has poisoned the context.
_GPU_FAULT = re.compile(
    r"CUDA error: |CUBLAS_STATUS_|CUDNN_STATUS_|cudaError|device-side assert|uncorrectable ECC"
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
        except Exception as failed:  # a message that cannot be had must not hide the error
            message = f"<no message: {type(failed).__name__}>"
        return cls(tuple(t.__name__ for t in type(error).__mro__), message)


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What an out-of-memory message says, in bytes; None where it does not."""

    requested: int | None = None
    free: int | None = None
    allocated: int | None = None
    reserved: int | None = None


def is_memory_error(raised: Raised) -> bool:
    return _has_no_device_memory(raised) or _has_no_host_memory(raised)


def of_exception(raised: Raised, phase: Phase, *, is_cpu: bool) -> Outcome:
    """`is_cpu`: the process's own memory is the device. Otherwise running out of it is `oom_host`."""
    if _has_no_device_memory(raised) or (is_cpu and _has_no_host_memory(raised)):
        return oom_of(phase)
    if _has_no_host_memory(raised):
        return Outcome.OOM_HOST
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
    """A process that ended without a result and that nobody here ended: outcome, signal, exit code.

    `kernel_oom_kill`: the kernel's OOM killer struck on this machine meanwhile.
    """
    number = wait_status & 0x7F
    if number == 0:
        return Outcome.CRASHED, None, wait_status >> 8
    if number == signal.SIGKILL and kernel_oom_kill:
        return Outcome.OOM_HOST, number, None
    return Outcome.CRASHED, number, None


def oom_of(phase: Phase) -> Outcome:
    """Setting up, capture and warm-up come before the first token and count as load."""
    if phase is Phase.PREFILL:
        return Outcome.OOM_PREFILL
    return Outcome.OOM_DECODE if phase in (Phase.DECODE, Phase.DONE) else Outcome.OOM_LOAD


def memory_report(message: str) -> MemoryReport:
    """Read torch's messages, CUDA's (several wordings since 1.x) and the CPU allocator's."""
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
    return "Error" in "".join(raised.types) and any(coat in raised.message for coat in _DEVICE_COATS)


def _has_no_host_memory(raised: Raised) -> bool:
    if "MemoryError" in raised.types:
        return True
    return raised.message == _NO_PRIMITIVE or any(coat in raised.message for coat in _HOST_COATS)
