"""Why a cell cannot run, in the same words from both engines."""

from typing import TYPE_CHECKING

from workers.cell import Cell
from workers.engines.families import FAMILIES
from workers.engines.session import ModeUnsupported
from workers.kv_dtype import DEVICE
from workers.modes import Layout

if TYPE_CHECKING:
    from workers.models.load import LoadedModel

#: Of a mode of constant memory.
NOTHING_TO_DROP = "each of its layers keeps constant memory already, so that streaming would change nothing"


def refuse_placement(cell: Cell) -> None:
    """Raises `ModeUnsupported` where the graph engine is to keep keys and values off the device."""
    if cell.kv_placement != DEVICE:
        raise ModeUnsupported("the graph engine keeps keys and values on the device: leave out kv_placement")


def refuse_sharding(cell: Cell) -> None:
    """Raises `ModeUnsupported` where the cell's engine does not cut its models for so many devices, or its mode is not one of
    models that are cut."""
    if cell.devices == 1:
        return
    from workers.models.config import read_config
    from workers.models.shard import uneven  # torch, which not every command needs
    from workers.models.tp_plan import refused

    policy = cell.mode_spec.policy
    if cell.engine == "eager" and policy.layout is not Layout.RING and not policy.grows:
        raise ModeUnsupported(
            f"mode {cell.mode} chooses what to keep by all heads, of which each device has some"
        )
    if cell.kv_placement != DEVICE:
        raise ModeUnsupported("on several devices keys and values stay on them: leave out kv_placement")
    drafts = cell.mode_spec.decoder.needs_draft and cell.model.draft is not None
    for name in (cell.model.target, *([cell.model.draft] if drafts and cell.model.draft else [])):
        config = read_config(name, cell.model)
        if cell.engine == "eager":
            reason = refused(config, cell.devices)
        elif config.model_type not in FAMILIES:
            reason = f"the graph engine does not run a {config.model_type}"
        else:
            reason = uneven(config, cell.devices)
        if reason is not None:
            raise ModeUnsupported(f"{name} on {cell.devices} devices: {reason}")


def check_decoder(cell: Cell, target: "LoadedModel", draft: "LoadedModel | None") -> None:
    """Raises `ModeUnsupported` where the cell's decoder cannot run as the cell asks."""
    decoder = cell.mode_spec.decoder
    if decoder.largest_batch is not None and cell.batch_size > decoder.largest_batch:
        sequences = "one sequence" if decoder.largest_batch == 1 else f"{decoder.largest_batch} sequences"
        raise ModeUnsupported(
            f"mode {cell.mode} decodes {sequences} at a time, not a batch of {cell.batch_size}"
        )
    injected = cell.speculation.acceptance if cell.speculation is not None else None
    if injected is not None and not decoder.takes_oracle:
        raise ModeUnsupported(f"mode {cell.mode} makes its own proposals: leave out `speculation.acceptance`")
    if not decoder.needs_draft:
        return
    if draft is None:
        raise ModeUnsupported(f"mode {cell.mode} needs a draft model")
    if draft.vocab_size != target.vocab_size:
        raise ModeUnsupported(
            f"the draft's vocabulary ({draft.vocab_size}) differs from the target's ({target.vocab_size})"
        )
