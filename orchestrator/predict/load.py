"""What a model takes beside its weights while it comes onto the device. Read off `workers.models.load`."""

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.moment import Live, Moment
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.models.source import RANDOM

#: What reading files leaves behind in a CPU process: stacks of transformers' four loader threads (512 KiB
#: each, see `workers.host.child.limits`), which libc keeps, and holes in the heap. Measured.
_READING = 3 * 2**20


def loading(cell: Cell, shape: ModelShape, draft: ModelShape | None, device: DeviceProfile) -> Moment:
    """Target first, then the draft: what is alive beside the weights of both."""
    live = _beside(cell, cell.model.target, shape, device)
    if draft is not None and cell.model.draft is not None:
        live = max(
            live, _beside(cell, cell.model.draft, draft, device), key=lambda parts: sum(p.size for p in parts)
        )
    return Moment("load", (), live)


def stays(cell: Cell, device: DeviceProfile) -> tuple[Live, ...]:
    """What a load leaves behind for the rest of the run."""
    from_files = any(
        name is not None and not name.startswith(RANDOM) for name in (cell.model.target, cell.model.draft)
    )
    return (
        (Live("stacks of loader threads, holes in the heap", _READING),)
        if device.allocator == "cpu" and from_files
        else ()
    )


def _beside(cell: Cell, name: str, shape: ModelShape, device: DeviceProfile) -> tuple[Live, ...]:
    if name.startswith(RANDOM):
        head = shape.vocab * shape.hidden * dtype_bytes(cell.model.dtype)
        return (Live("output matrix, before it is tied", head),) if shape.tied_embeddings else ()
    stored = shape.stored_dtype
    if device.allocator == "cpu" and stored not in (None, cell.model.dtype) and shape.parameters is not None:
        assert stored is not None
        return (Live("the mapped file, while it is converted", shape.parameters * dtype_bytes(stored)),)
    return ()
