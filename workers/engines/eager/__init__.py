"""The eager engine: transformers `generate` as people run it, in every mode.

Baseline and recompute work with every causal language model; streaming and window with GPT-NeoX and Llama.
The repetition penalty is transformers': it looks at the prompt and the new tokens, the whole of both.
"""

from workers.cell import Cell
from workers.engines.eager.recompute import RecomputeSession
from workers.engines.eager.session import CachedSession
from workers.engines.session import ModeUnsupported, Session
from workers.models.load import LoadedModel
from workers.modes import CachePolicy

__all__ = ["open_session"]


def open_session(cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> Session:
    """Raises `ModeUnsupported`; memory errors pass through."""
    if cell.mode_spec.policy is CachePolicy.RECOMPUTE:
        return RecomputeSession(cell, target)
    if draft is not None and cell.batch_size > 1:
        raise ModeUnsupported(
            f"assisted decoding takes one sequence at a time, not a batch of {cell.batch_size}"
        )
    if draft is not None and draft.vocab_size != target.vocab_size:
        raise ModeUnsupported(
            f"the draft's vocabulary ({draft.vocab_size}) differs from the target's ({target.vocab_size})"
        )
    return CachedSession(cell, target, draft)
