"""The eager engine: transformers' `generate` as people run it, in every mode.

What a model needs for a policy is asked of the model itself (`admission`, `evicting`); model types are not named.
The repetition penalty is transformers': it counts the whole prompt and all new tokens.
"""

from workers.cell import Cell
from workers.engines.eager.session import CachedSession
from workers.engines.eager.stored import refuse_stored
from workers.engines.session import Session
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
    refuse_stored(cell)
    check_decoder(cell, target, draft)
    return CachedSession(cell, target, draft, opened, implementation(decoder, "eager"))
