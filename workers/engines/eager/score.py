"""Reads a given text through a cache, chunk by chunk: its logits, and the likelihood of each token.

T tokens, Q tokens of one chunk, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from workers.attempt import Phase
from workers.engines.session import Recorder
from workers.engines.shared.scores import Tally
from workers.modes import ScoreBucket


def read(
    model: PreTrainedModel, cache: Cache | None, ids_BT: torch.Tensor, chunk: int
) -> Iterator[torch.Tensor]:
    """Yield the logits [B, Q, V] of every token, in the model's dtype, `chunk` tokens a forward. All at once without a cache."""
    if cache is None:
        yield model(input_ids=ids_BT, use_cache=False).logits
        return
    for ids_BQ in ids_BT.split(chunk, dim=1):
        yield model(input_ids=ids_BQ, past_key_values=cache, use_cache=True).logits


def skim(
    readers: list[tuple[PreTrainedModel, Cache]],
    ids_BT: torch.Tensor,
    chunk: int,
    note: Callable[[int], None] = lambda read: None,
) -> None:
    """Fill the caches, chunk by chunk, each reader in turn. No logits but the last of each chunk are computed.

    `note`: is told how many tokens have been read, from 0 on.
    """
    read = 0
    note(read)
    for ids_BQ in ids_BT.split(chunk, dim=1):
        for model, cache in readers:
            last_only = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
            model(input_ids=ids_BQ, past_key_values=cache, use_cache=True, **last_only)
        read += ids_BQ.shape[1]
        note(read)


def score_through(
    model: PreTrainedModel, cache: Cache | None, ids_T: torch.Tensor, chunk: int, recorder: Recorder
) -> list[ScoreBucket]:
    """Score token t + 1 after reading tokens 0 .. t. The last token is scored and not read."""
    recorder.phase(Phase.PREFILL)
    tally = Tally()
    for logits_BQV in read(model, cache, ids_T[None, :-1], chunk):
        next_Q = ids_T[tally.scored + 1 :][: logits_BQV.shape[1]]
        nll_Q = negative_log_likelihood(logits_BQV[0], next_Q)
        if not tally.scored:
            recorder.phase(Phase.DECODE)
        tally.add(range(tally.scored + 1, tally.scored + 1 + len(nll_Q)), nll_Q)
        recorder.tokens(tally.scored)
    return tally.buckets()


def negative_log_likelihood(logits_QV: torch.Tensor, next_Q: torch.Tensor) -> list[float]:
    """Return nats on the host. Waits for the device once."""
    dtype = torch.promote_types(logits_QV.dtype, torch.float32)
    return torch.nn.functional.cross_entropy(logits_QV.to(dtype), next_Q, reduction="none").tolist()
