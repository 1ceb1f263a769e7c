"""The graph engine: exact streaming and speculation at the speed of the memory bus.

A state, a step, a round, as in gpt-fast: `decode` and `speculate` hold the algorithm, `model` the pass of a model,
`ring` and `full_cache` what it remembers, `kernels` the arithmetic, `graphs` the replay, `execution` the loop.
"""

from typing import TYPE_CHECKING

from workers.cell import Cell
from workers.engines.graph.session import GraphSession
from workers.engines.shared.implementations import implementation
from workers.engines.shared.refusals import check_decoder, refuse_placement

if TYPE_CHECKING:
    from workers.models.load import LoadedModel


def open_session(cell: Cell, target: "LoadedModel", draft: "LoadedModel | None") -> GraphSession:
    """Open a session of this engine.

    Raises `ModeUnsupported`: the engine has no such policy or decoder, the decoder cannot run as the cell asks, or the
    architecture is none of `workers.engines.families`.
    """
    policy, decoder = cell.mode_spec.policy, cell.mode_spec.decoder
    open_cache, stages_of = implementation(policy, "graph"), implementation(decoder, "graph")
    refuse_placement(cell)
    check_decoder(cell, target, draft)
    return GraphSession(cell, target, draft if decoder.needs_draft else None, open_cache, stages_of)
