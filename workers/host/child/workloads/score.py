"""Scores a given text."""

import torch

from workers.engines.session import Session
from workers.host.child.cell_run import CellRun


def score(run: CellRun, session: Session, ids_T: torch.Tensor) -> int:
    """Return how many tokens were scored."""
    run.scores = tuple(session.score(ids_T, run.recorder))
    scored = sum(score.num_tokens for score in run.scores)
    run.end(scored)
    return scored
