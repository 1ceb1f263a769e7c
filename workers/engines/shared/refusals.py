"""Why a cell cannot run, in the same words from both engines."""

from typing import TYPE_CHECKING, Any

from workers.cell import Cell
from workers.engines.families import FAMILIES, STATIC_ROPE, Family
from workers.engines.session import ModeUnsupported

if TYPE_CHECKING:
    from workers.models.load import LoadedModel


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


def family_of(model: Any, what: str) -> Family:
    """The family of a transformers model whose keys may be rotated once.

    `what`: for the message, e.g. "stream". Raises `ModeUnsupported`, naming what the architecture lacks.
    """
    config = model.config
    refused = f"{type(model).__name__} cannot {what}"
    family = FAMILIES.get(config.model_type)
    if family is None:
        lacks = (
            "its attention has not been shown to rotate as theirs does"
            if hasattr(model.base_model, "rotary_emb")
            else "it has no rotary embedding (`rotary_emb`), through which the attention learns positions"
        )
        raise ModeUnsupported(
            f"{refused}: {lacks} (model type {config.model_type}; works: {', '.join(FAMILIES)})"
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in STATIC_ROPE:
        raise ModeUnsupported(
            f"{refused}: a key is rotated once, but rope type {rope_type!r} changes its frequencies with the length "
            f"(works: {', '.join(STATIC_ROPE)})"
        )
    if _has_windows(config):
        raise ModeUnsupported(f"{refused}: some of its layers have a sliding window of their own")
    return family


def _has_windows(config: Any) -> bool:
    """Whether any layer may see only a window: by the kinds of its layers, or, where it has none, by one size for all."""
    kinds = getattr(config, "layer_types", None) or ()
    return "sliding_attention" in kinds or getattr(config, "sliding_window", None) is not None
