"""A CPU slot inside a cell's process: the budget is a limit on the process's own data."""

import torch

from workers import kv_dtype
from workers.allocator import refusal_on_cpu
from workers.attempt import Phase
from workers.engines.session import ModeUnsupported
from workers.host.child import limits
from workers.host.child.device import AllocatorPeaks, MemoryAtFailure
from workers.host.child.heap_reserve import take_heap_reserve
from workers.host.events import Request
from workers.meters.process import DataPeak, ProcessMemory, own_data_and_stack, own_memory

#: What most models on a CPU compute in.
_FIRST_DTYPE = torch.float32
#: Large enough for a matrix product to load its library.
_SETUP = 256


class CpuDevice:
    """Implements `ChildDevice`. Created before there is a cell: takes what every cell needs of its process.

    The heap reserve and the math libraries (set up for float32 and one thread) count against the budget, as a
    context does on a card.
    """

    is_cpu = True
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        limits.configure_malloc()
        self._data = own_memory().data
        self._data_and_stack = own_data_and_stack()
        take_heap_reserve(self._data)
        torch.set_num_threads(1)  # any more start with the cell
        self._context_bytes = _load_math_libraries(_FIRST_DTYPE)
        self._data_when_ready = own_memory().data
        self._dtype, self._threads = _FIRST_DTYPE, 1
        self._peak: DataPeak | None = None
        self._failed_at: tuple[int, ProcessMemory] | None = None
        self.data_peak_bytes: int | None = None

    def set_limits(self, request: Request) -> int:
        """What has come since `__init__` is the cell's account of itself (a time for each token). It counts against
        no budget. Raises `ModeUnsupported` for settings of an allocator that a CPU does not have."""
        cell = request.lease.cell
        for refusal in (refusal_on_cpu(cell.allocator), kv_dtype.refusal_on_cpu(cell.kv_placement)):
            if refusal:
                raise ModeUnsupported(refusal)
        self._dtype, self._threads = getattr(torch, cell.model.dtype), request.threads
        since = own_memory().data - self._data_when_ready
        self._data += since
        self._data_and_stack += since
        limits.limit_data(self._data + (request.total_bytes if cell.budget is None else cell.budget))
        return self._data_and_stack

    def create_context(self) -> int:
        if self._dtype is _FIRST_DTYPE and self._threads == 1:
            return self._context_bytes
        return self._context_bytes + _load_math_libraries(self._dtype)

    def enter(self, phase: Phase) -> None:
        if phase is Phase.PREFILL and self._peak is None:
            self._peak = DataPeak()

    def begin_run(self) -> None: ...

    def allocator_bytes(self) -> tuple[None, None]:
        return None, None

    def peaks(self) -> AllocatorPeaks:
        return AllocatorPeaks()

    def end_run(self) -> None:
        if self._peak is not None:
            self.data_peak_bytes = self._peak.read() - self._data

    def lift_limits(self) -> None:
        limits.lift_data_limit()

    def note_failure(self) -> None:
        self._failed_at = limits.lift_data_limit(), own_memory()

    def at_failure(self, reported_free: int | None) -> MemoryAtFailure:
        assert self._failed_at is not None
        limit, memory = self._failed_at
        return MemoryAtFailure(max(0, limit - memory.data), memory.data - self._data, None)


def _load_math_libraries(dtype: torch.dtype) -> int:
    """Returns the growth of data in bytes."""
    before = own_memory().data
    square = torch.ones(_SETUP, _SETUP, dtype=dtype)
    torch.softmax(square @ square, dim=-1)
    qkv_BHTD = square[:, :64][None, None]
    torch.nn.functional.scaled_dot_product_attention(qkv_BHTD, qkv_BHTD, qkv_BHTD)
    del square, qkv_BHTD
    return own_memory().data - before
