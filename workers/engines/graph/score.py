"""Teacher-forced reading through a cache, in chunks, and logits one token at a time."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from workers.attempt import Phase
from workers.engines.graph.model import CachedModel
from workers.engines.session import Recorder
from workers.engines.shared.scores import Tally
from workers.modes import ScoreBucket


def score(reader: CachedModel, ids_T: torch.Tensor, chunk: int, recorder: Recorder) -> list[ScoreBucket]:
    """Negative log-likelihood of token t + 1 after tokens 0 .. t, summed by the scored token's position."""
    recorder.phase(Phase.PREFILL)
    tally = Tally()
    for start, nll_M in _chunks(reader, ids_T, chunk):
        if start == 0:
            recorder.phase(Phase.DECODE)
        tally.add(range(start + 1, start + 1 + len(nll_M)), nll_M.tolist())
        recorder.tokens(tally.scored)
    return tally.buckets()


def _chunks(reader: CachedModel, ids_T: torch.Tensor, chunk: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(ids_T) - 1, chunk):
        read_1M = ids_T[None, start : min(start + chunk, len(ids_T) - 1)]
        reader.cache.reserve(start + read_1M.shape[1])
        at = torch.tensor(start, device=ids_T.device)
        logits_MV = reader.logits(reader.prefill(read_1M, at, alone=False)[0])
        yield (
            start,
            functional.cross_entropy(logits_MV, ids_T[start + 1 :][: len(logits_MV)], reduction="none"),
        )


def logits(reader: CachedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """[T, V] float32 on the host; row t after reading token t alone, through the kernels of a step."""
    rows = []
    for position in range(len(ids_T)):
        reader.cache.reserve(position + 1)
        at = torch.tensor(position, device=ids_T.device)
        rows.append(reader.read(ids_T[None, position : position + 1], at).float().cpu())
    return torch.cat(rows)
