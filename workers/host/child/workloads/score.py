"""Scores a given text."""

import torch

from workers.engines.session import Session
from workers.host.child.cell_run import CellRun
from workers.host.child.workloads.closeness import closeness


def score(run: CellRun, session: Session, ids_T: torch.Tensor) -> int:
    """Return how many tokens were scored."""
    run.results = tuple(session.score(ids_T, run.recorder))
    scored = sum(bucket.num_tokens for bucket in run.results)
    run.end(scored)
    if run.open_twin is not None:
        found = closeness(session, run.open_twin, ids_T)
        run.note(
            kl_tokens=found.tokens, kl_mean=found.kl_mean, kl_p99=found.kl_p99, same_choice=found.same_choice
        )
    return scored
