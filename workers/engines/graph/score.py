"""Teacher-forced reading through a cache, in chunks, and logits one token at a time."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from workers.attempt import Phase, ScoreBucket
from workers.engines.graph.model import CachedModel
from workers.engines.session import Recorder

FINE, COARSE, COARSE_FROM = 128, 4096, 65536


def score(reader: CachedModel, ids_T: torch.Tensor, chunk: int, recorder: Recorder) -> list[ScoreBucket]:
    """Negative log-likelihood of token t + 1 after tokens 0 .. t, summed by the scored token's position."""
    recorder.phase(Phase.PREFILL)
    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for start, nll_M in _chunks(reader, ids_T, chunk):
        if start == 0:
            recorder.phase(Phase.DECODE)
        for position, nll in enumerate(nll_M.tolist(), start=start + 1):
            total, count = sums.get(_bucket(position), (0.0, 0))
            sums[_bucket(position)] = (total + nll, count + 1)
        recorder.tokens(start + len(nll_M))
    return [
        ScoreBucket(position_start=first, position_end=end, nll_sum=total, num_tokens=count)
        for (first, end), (total, count) in sorted(sums.items())
    ]


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


def _bucket(position: int) -> tuple[int, int]:
    """128 positions wide up to 65,536, 4,096 beyond."""
    width = FINE if position < COARSE_FROM else COARSE
    start = position - position % width
    return start, start + width


def logits(reader: CachedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """[T, V] float32 on the host; row t after reading token t alone, through the kernels of a step."""
    rows = []
    for position in range(len(ids_T)):
        reader.cache.reserve(position + 1)
        at = torch.tensor(position, device=ids_T.device)
        rows.append(reader.read(ids_T[None, position : position + 1], at).float().cpu())
    return torch.cat(rows)
