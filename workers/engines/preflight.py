"""What a model's configuration alone tells of a cell: asked before a device is touched and a weight is read."""

from workers.cell import Cell
from workers.models.config import read_config


def refuse_by_config(cell: Cell) -> None:
    """Raises `ModeUnsupported` where the mode is none that the architecture can have, and `LoadError`.

    The graph engine refuses such architectures as a whole, once it sees the model.
    """
    if not cell.mode_spec.decoder.verifies or cell.engine != "eager":
        return
    from workers.engines.eager.policies import refuse_drafting
    from workers.models.build import model_class

    for name in (cell.model.target, cell.model.draft):
        if name is not None:
            built = model_class(read_config(name, cell.model), trust_remote_code=cell.model.trust_remote_code)
            if built is not None:
                refuse_drafting(built)
