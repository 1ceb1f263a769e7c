"""A card inside a cell's process: a CUDA context, and the emulated card that a budget asks for."""

import pickle

import torch

from workers.allocator import settings_text
from workers.attempt import Phase
from workers.host.child import limits
from workers.host.child.device import AllocatorPeaks, MemoryAtFailure
from workers.host.events import Request

#: Kernels that are loaded between two calls of `EmulatedCard.follow`.
_LATER_KERNELS = 16 * 2**20
#: Large enough for a matrix product to load its library.
_SETUP = 256
_MAX_HISTORY = 20_000


class CudaDevice:
    """Implements `ChildDevice`. Holds nothing of the card before `create_context`: the card must be clean between
    two cells."""

    is_cpu = False
    torch_device = torch.device("cuda", 0)
    data_peak_bytes = None

    def __init__(self) -> None:
        limits.configure_malloc()
        self._request: Request | None = None
        self._card: EmulatedCard | None = None

    def set_limits(self, request: Request) -> int:
        """The emulated card waits for the context, which counts against it."""
        self._request = request
        return 0

    def create_context(self) -> int:
        request = self._request
        assert request is not None
        cell = request.lease.cell
        if (text := settings_text(cell.allocator)) is not None:
            torch._C._accelerator_setAllocatorSettings(text)
        context_bytes = load_kernels(getattr(torch, cell.model.dtype), request.idle_bytes)
        if cell.budget is not None:
            self._card = EmulatedCard(cell.budget, request.reserve_bytes, request.idle_bytes)
        if request.lease.memory_snapshot:
            torch.cuda.memory._record_memory_history(max_entries=_MAX_HISTORY)
        return context_bytes

    def enter(self, phase: Phase) -> None:
        if self._card is not None:
            self._card.follow()

    def begin_run(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()  # retries of what came before are not the run's

    def allocator_bytes(self) -> tuple[int | None, int | None]:
        if self._card is not None:
            self._card.follow()
        return _allocator_bytes()

    def peaks(self) -> AllocatorPeaks:
        if not torch.cuda.is_initialized():
            return AllocatorPeaks()
        stats = torch.cuda.memory_stats()
        return AllocatorPeaks(
            stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"], stats["num_alloc_retries"]
        )

    def end_run(self) -> None: ...

    def lift_limits(self) -> None: ...

    def note_failure(self) -> None: ...

    def at_failure(self, reported_free: int | None) -> MemoryAtFailure:
        """`free` is the emulated card's where there is one; torch's message tells the real card's."""
        free = reported_free
        if self._card is not None:
            free = max(0, self._card.allocator_bytes - torch.cuda.memory_reserved())
        with_snapshot = self._request is not None and self._request.lease.memory_snapshot
        return MemoryAtFailure(free, *_allocator_bytes(), _snapshot() if with_snapshot else None)


class EmulatedCard:
    """Holds torch's allocator to what a card of `budget` bytes would have left for it.

    The context grows while a model runs: CUDA loads kernels when they are first called, 2 MiB in eager mode, 80 MiB
    for captured graphs. `follow` takes that from the allocator, which returns what it only caches before it gives
    up, as on a real card. Where the card is exceeded all the same, the host ends the process.
    """

    def __init__(self, budget: int, reserve_bytes: int, idle_bytes: int) -> None:
        self._for_process = budget - reserve_bytes - _LATER_KERNELS
        self._idle_bytes = idle_bytes
        self._context_bytes = -1
        self.allocator_bytes = 0
        self.follow()

    def follow(self) -> None:
        context_bytes = _context_bytes(self._idle_bytes)
        if context_bytes <= self._context_bytes:
            return
        self._context_bytes = context_bytes
        self.allocator_bytes = max(0, self._for_process - context_bytes)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.allocator_bytes / total))


def load_kernels(dtype: torch.dtype, idle_bytes: int) -> int:
    """Create the context and load what every model calls. Returns what that holds of the card, in bytes, above the
    `idle_bytes` that others held."""
    square = torch.ones(_SETUP, _SETUP, dtype=dtype, device="cuda")
    torch.nn.functional.layer_norm(square @ square, (_SETUP,))
    torch.softmax(torch.nn.functional.gelu(square).float(), dim=-1).argmax(dim=-1)
    torch.nn.functional.embedding(torch.zeros(2, dtype=torch.int64, device="cuda"), square)
    qkv_BHTD = square[:, :64][None, None]
    torch.cat(
        [torch.nn.functional.scaled_dot_product_attention(qkv_BHTD, qkv_BHTD, qkv_BHTD), qkv_BHTD], dim=-2
    )
    torch.cuda.synchronize()
    del square, qkv_BHTD
    torch.cuda.empty_cache()
    return _context_bytes(idle_bytes)


def _context_bytes(idle_bytes: int) -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free - idle_bytes - torch.cuda.memory_reserved()


def _allocator_bytes() -> tuple[int | None, int | None]:
    """Allocated, reserved; None before there is a context, as when its creation is what failed."""
    if not torch.cuda.is_initialized():
        return None, None
    stats = torch.cuda.memory_stats()
    return stats["allocated_bytes.all.current"], stats["reserved_bytes.all.current"]


def _snapshot() -> bytes:
    """What pytorch.org/memory_viz reads. Written for a person to open; nothing here ever reads it."""
    return pickle.dumps(torch.cuda.memory._snapshot())
