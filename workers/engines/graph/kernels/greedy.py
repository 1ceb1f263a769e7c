"""The next token of each row: repetition penalty, EOS suppressed and noted, argmax."""

import functools

import torch

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous


def greedy_plain(
    logits_NV: torch.Tensor,
    read_BM: torch.Tensor,
    seen_BV: torch.Tensor | None,
    penalty: float,
    eos_ids: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token [B, M], whether the choice would have been EOS [B, M]).

    Row m of `read_BM` has read tokens 0 .. m of this pass besides what `seen_BV` holds: a draft counts for the
    positions behind it, and a rejected one is forgotten with its row. Penalty as in transformers: a positive
    score is divided, a negative one multiplied (CTRL, arXiv:1909.05858). `seen_BV` None: no penalty.
    """
    B, M = read_BM.shape
    scores_BMV = logits_NV.view(B, M, -1)
    if seen_BV is not None:
        seen_BMV = seen_BV[:, None, :].expand_as(scores_BMV).clone()
        for m in range(M):
            seen_BMV[:, m].scatter_(1, read_BM[:, : m + 1], True)
        penalised_BMV = torch.where(scores_BMV > 0, scores_BMV / penalty, scores_BMV * penalty)
        scores_BMV = torch.where(seen_BMV, penalised_BMV, scores_BMV)
    if not eos_ids:
        token_BM = scores_BMV.argmax(-1)
        return token_BM, torch.zeros_like(token_BM, dtype=torch.bool)
    eos_E = torch.tensor(eos_ids, device=logits_NV.device)
    would_stop_BM = torch.isin(scores_BMV.argmax(-1), eos_E)
    return scores_BMV.index_fill(2, eos_E, -torch.inf).argmax(-1), would_stop_BM


CHUNK = 2048


@jit
def _best(score, index, NEVER: tl.constexpr):
    """The largest score and the first index that has it. NaN is the largest, as in torch.argmax: an index past the
    vocabulary would be read from the embedding next."""
    score = tl.where(score == score, score, float("inf"))
    peak = tl.max(score, axis=0)
    return peak, tl.min(tl.where(score == peak, index, NEVER), axis=0)


@jit(do_not_specialize=["M"])
def _greedy_chunk(
    logits, read, seen, penalty, eos, peaks, places, M, V,
    SEEN: tl.constexpr, EOS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of one row and one chunk of the vocabulary: the best token that is no EOS, and the best EOS."""
    wait_for_previous(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    score = tl.load(logits + row.to(tl.int64) * V + index, mask=index < V, other=float("-inf")).to(tl.float32)
    if SEEN:
        batch = row // M
        was_seen = tl.load(seen + batch.to(tl.int64) * V + index, mask=index < V, other=0) != 0
        for m in range(row - batch * M + 1):
            was_seen = was_seen | (index == tl.load(read + batch * M + m))
        score = tl.where(was_seen, tl.where(score > 0, score / penalty, score * penalty), score)
    is_eos = index < 0
    for i in tl.static_range(EOS):
        is_eos = is_eos | (index == tl.load(eos + i))
    at = (row * tl.num_programs(1) + chunk) * 2
    peak, place = _best(tl.where(is_eos, float("-inf"), score), index, 2147483647)
    tl.store(peaks + at, peak)
    tl.store(places + at, place)
    peak, place = _best(tl.where(is_eos, score, float("-inf")), index, 2147483647)
    tl.store(peaks + at + 1, peak)
    tl.store(places + at + 1, place)


@jit
def _greedy_row(
    peaks, places, token, would_stop, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_previous(PDL)
    row = tl.program_id(0)
    chunk = tl.arange(0, BLOCK)
    at = (row * CHUNKS + chunk) * 2
    inside = chunk < CHUNKS
    peaks_C = tl.load(peaks + at, mask=inside, other=float("-inf"))
    places_C = tl.load(places + at, mask=inside, other=2147483647)
    peak, place = _best(peaks_C, places_C, 2147483647)
    eos_C = tl.load(peaks + at + 1, mask=inside, other=float("-inf"))
    eos_places_C = tl.load(places + at + 1, mask=inside, other=2147483647)
    eos_peak, eos_place = _best(eos_C, eos_places_C, 2147483647)
    tl.store(token + row, place.to(tl.int64))
    tl.store(would_stop + row, (eos_peak > peak) | ((eos_peak == peak) & (eos_place < place)))


def greedy(
    logits_NV: torch.Tensor,
    read_BM: torch.Tensor,
    seen_BV: torch.Tensor | None,
    penalty: float,
    eos_ids: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`greedy_plain` in two launches: chunks of the vocabulary, then rows."""
    (N, V), (B, M) = logits_NV.shape, read_BM.shape
    device = logits_NV.device
    chunks = ceil_div(V, CHUNK)
    peaks = torch.empty(N, chunks, 2, dtype=torch.float32, device=device)
    places = torch.empty(N, chunks, 2, dtype=torch.int32, device=device)
    token_BM = torch.empty(B, M, dtype=torch.int64, device=device)
    would_stop_BM = torch.empty(B, M, dtype=torch.bool, device=device)
    _greedy_chunk[(N, chunks)](
        logits_NV, read_BM.contiguous(), logits_NV if seen_BV is None else seen_BV.view(torch.uint8), penalty,
        _eos_tensor(eos_ids, device), peaks, places, M, V, seen_BV is not None, len(eos_ids), CHUNK, num_warps=4,
        **launch_options(),
    )  # fmt: skip
    _greedy_row[(N,)](
        peaks,
        places,
        token_BM,
        would_stop_BM.view(torch.uint8),
        chunks,
        power_of_two(chunks),
        num_warps=1,
        **launch_options(),
    )
    return token_BM, would_stop_BM


@functools.cache
def _eos_tensor(eos_ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """On the device before any capture: a capture cannot copy from the host."""
    return torch.tensor(eos_ids or (0,), dtype=torch.int32, device=device)
