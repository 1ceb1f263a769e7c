"""What one out-of-memory spares: longer cells of the same kind would end the same way."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workers.attempt import Attempt
from workers.cell import Cell
from workers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A queued cell that needs no run: `because` is the cell that ran out of memory, `saved_s` predicted
    seconds.
    """

    cell: Cell
    because: str
    saved_s: float


def implied(attempt: Attempt, cell: Cell) -> bool:
    """Whether a device OOM of `attempt` means that `cell`, on a device of the same kind and size, runs out
    too.

    Same model, mode, engine, budget, batch and prompt, at least as long, whatever the repeat and the seed. An
    OOM before the first new token implies every length; one at token i all lengths above i. Probes of a
    boundary search are never implied: they ask for just this confirmation.
    """
    if not attempt.outcome.is_device_oom or cell.purpose == "probe":
        return False
    failed = attempt.cell
    same = dataclasses.replace(
        cell, length=failed.length, repeat=failed.repeat, seed=failed.seed, purpose=failed.purpose
    )
    if same != failed:
        return False
    if attempt.outcome is not Outcome.OOM_DECODE:
        return True
    index = attempt.failure.oom_token_index if attempt.failure is not None else None
    return cell.length > index if index is not None else cell.length >= failed.length


def prune(attempt: Attempt, queued: Iterable[Cell], predict_s: Callable[[Cell], float]) -> list[Pruned]:
    """The cells among `queued` that `attempt` implies. `predict_s`: device seconds a cell would have
    taken.
    """
    return [
        Pruned(cell=cell, because=attempt.cell.cell_id, saved_s=predict_s(cell))
        for cell in queued
        if implied(attempt, cell)
    ]
