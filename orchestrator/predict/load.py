"""What a model takes beside its weights while it comes onto the device. Read off `workers.models.load`."""

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.moment import Live, Moment
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell, ModelRef
from workers.models.source import RANDOM


def loading(cell: Cell, shape: ModelShape, draft: ModelShape | None, device: DeviceProfile) -> Moment:
    """Target first, then the draft: what is alive beside the weights of both."""
    hungriest = _beside(cell, cell.model.target, shape, device)
    if draft is not None and cell.model.draft is not None:
        yet_to_come = draft.weights_bytes(cell.model.dtype) or 0
        hungriest = max(
            Live(hungriest.what, max(0, hungriest.size - yet_to_come)),
            _beside(cell, cell.model.draft, draft, device),
            key=lambda live: live.size,
        )
    return Moment("load", (), (hungriest,))


def _beside(cell: Cell, name: str, shape: ModelShape, device: DeviceProfile) -> Live:
    if name.startswith(RANDOM):
        head = shape.vocab * shape.hidden * dtype_bytes(cell.model.dtype)
        return Live("output matrix, before it is tied", head if shape.tied_embeddings else 0)
    stored = shape.stored_dtype
    if stored is not None and shape.parameters is not None and is_converted(name, cell.model, shape, device):
        return Live("the mapped file, while it is converted", shape.parameters * dtype_bytes(stored))
    return Live("nothing", 0)


def is_converted(name: str, ref: ModelRef, shape: ModelShape, device: DeviceProfile) -> bool:
    """On a CPU: to weights that lie together in blocks. A card gets each tensor by itself."""
    is_stored_so = name.startswith(RANDOM) or shape.is_quantised or shape.stored_dtype in (None, ref.dtype)
    return device.allocator == "cpu" and not is_stored_so
