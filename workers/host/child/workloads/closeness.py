"""How far a cell's logits are from those of a full cache in the model's dtype, on the same ids. Measured after the run.

T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from workers.cell import Cell
from workers.engines.session import Session
from workers.kv_dtype import AUTO, DEVICE
from workers.modes import BASELINE, Layout

#: Tokens of the text that are compared: each is read alone, twice.
TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Closeness:
    """Of the next-token distributions after `tokens` tokens, read one at a time: Kullback-Leibler divergence from the full
    cache's to the cell's, nats; `same_choice`: share of the tokens after which both would choose the same one."""

    tokens: int
    kl_mean: float
    kl_p99: float
    same_choice: float


def twin_of(cell: Cell) -> Cell | None:
    """The cell with a full cache in the model's dtype; None where it is that already, or reads without a cache."""
    if cell.mode_spec.policy.layout is Layout.NONE:
        return None
    twin = replace(cell, mode=BASELINE, streaming=None, kv_dtype=AUTO, kv_placement=DEVICE)
    return None if twin == cell else twin


def closeness(session: Session, open_twin: Callable[[], Session], ids_T: torch.Tensor) -> Closeness:
    read_T = ids_T[:-1][:TOKENS]  # the last one is scored and not read
    own_TV = session.logits(read_T)
    true_TV = open_twin().logits(read_T)
    kl_T, same_T = [], []
    for own_PV, true_PV in zip(own_TV.split(64), true_TV.split(64), strict=True):  # a few rows in float64
        own, true = own_PV.double().log_softmax(-1), true_PV.double().log_softmax(-1)
        kl_T.append((true.exp() * (true - own)).sum(-1).clamp(min=0))
        same_T.append(own_PV.argmax(-1) == true_PV.argmax(-1))
    kl = torch.cat(kl_T)
    return Closeness(
        len(kl), float(kl.mean()), float(kl.quantile(0.99)), float(torch.cat(same_T).double().mean())
    )
