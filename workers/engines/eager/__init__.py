"""The eager engine: transformers' `generate` as people run it, in every mode.

baseline and recompute work with every causal language model, the other policies with `workers.engines.families`.
The repetition penalty is transformers': it counts the whole prompt and all new tokens.
"""

from workers.cell import Cell
from workers.engines.eager.session import CachedSession
from workers.engines.eager.stored import is_stored_otherwise
from workers.engines.session import ModeUnsupported, Session
from workers.engines.shared.implementations import implementation
from workers.engines.shared.refusals import check_decoder
from workers.models.load import LoadedModel
from workers.modes import Layout

__all__ = ["open_session"]


def open_session(cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> Session:
    """Open a session of this engine. Raises `ModeUnsupported`. Memory errors pass through."""
    policy, decoder = cell.mode_spec.policy, cell.mode_spec.decoder
    opened = implementation(policy, "eager")
    if policy.layout is Layout.NONE:
        session: Session = opened(cell, target)
        return session
    if is_stored_otherwise(cell) and not policy.sees_all:
        raise ModeUnsupported(
            f"mode {cell.mode} keeps its cache itself: kv_dtype and kv_placement are of baseline in the eager engine"
        )
    check_decoder(cell, target, draft)
    return CachedSession(cell, target, draft, opened, implementation(decoder, "eager"))
