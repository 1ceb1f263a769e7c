"""Generates new tokens behind a prompt."""

import torch

from workers.engines.session import Session
from workers.host.child.cell_run import CellRun
from workers.host.child.outputs import ids_sha256, speculation_rates, text_ends


def generate(run: CellRun, session: Session, ids_T: torch.Tensor) -> int:
    """Return how many new tokens each sequence got. All sequences of a batch have the same prompt."""
    cell = run.cell
    result = session.generate(ids_T.repeat(cell.batch_size, 1), cell.length, run.recorder)
    run.output_ids = tuple(result.ids_BT[0].tolist())
    run.end(len(run.output_ids))
    run.note(
        eos_at=result.eos_at,
        output_sha256=ids_sha256(result.ids_BT[0]),
        draft_step_s=result.draft_step_s,
        verify_step_s=result.verify_step_s,
        **speculation_rates(result, len(run.output_ids)),
    )
    if run.output_ids:
        head, tail = text_ends(run.output_ids, cell)
        run.note(text_head=head, text_tail=tail)
    return len(run.output_ids)
