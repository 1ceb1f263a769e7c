"""What a model's configuration alone tells of a cell: asked before a device is touched and a weight is read."""

from workers.cell import Cell
from workers.engines.families import missing
from workers.engines.session import ModeUnsupported
from workers.engines.shared.refusals import refuse_placement, refuse_sharding
from workers.models.config import read_config


def refuse_by_config(cell: Cell) -> None:
    """Raises `ModeUnsupported` where the engine has no such cache or does not run the model, or the mode is none that the
    architecture can have; and `LoadError`."""
    refuse_sharding(cell)
    if cell.engine != "eager":
        refuse_placement(cell)
        _refuse_by_family(cell)
        return
    from workers.engines.eager.policies import refuse_drafting
    from workers.engines.eager.stored import refuse_stored
    from workers.models.build import model_class

    refuse_stored(cell)
    if not cell.mode_spec.decoder.verifies:
        return
    for name in (cell.model.target, cell.model.draft):
        if name is not None:
            built = model_class(read_config(name, cell.model), trust_remote_code=cell.model.trust_remote_code)
            if built is not None:
                refuse_drafting(built)


def _refuse_by_family(cell: Cell) -> None:
    """Of the graph engine, which refuses an architecture as a whole."""
    for name in (cell.model.target, cell.model.draft):
        if name is not None:
            config = read_config(name, cell.model).get_text_config(decoder=True)
            if reason := missing(config):
                raise ModeUnsupported(f"{config.model_type} cannot run in the graph engine: {reason}")


def refuse_by_machine(cell: Cell) -> None:
    """Raises `ModeUnsupported` where this machine lacks a package that the cell's cache needs."""
    if cell.engine == "eager":
        from workers.engines.eager.stored import refuse_missing_package

        refuse_missing_package(cell)
