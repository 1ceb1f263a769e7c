"""Scores a given text."""

import torch

from workers.engines.session import Session
from workers.host.child.cell_run import CellRun


def score(run: CellRun, session: Session, ids_T: torch.Tensor) -> int:
    """Return how many tokens were scored."""
    run.results = tuple(session.score(ids_T, run.recorder))
    scored = sum(bucket.num_tokens for bucket in run.results)
    run.end(scored)
    return scored
