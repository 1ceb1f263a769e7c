"""The next token of each row: repetition penalty, EOS suppressed and noted, argmax."""

import functools

import torch

from workers.engines.graph.kernels.jit import ceil_div, jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.state import Rules


def pick_plain(
    logits_NV: torch.Tensor, read_BM: torch.Tensor, seen_BV: torch.Tensor | None, rules: Rules
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
        penalised_BMV = torch.where(scores_BMV > 0, scores_BMV / rules.penalty, scores_BMV * rules.penalty)
        scores_BMV = torch.where(seen_BMV, penalised_BMV, scores_BMV)
    if not rules.eos_ids:
        token_BM = scores_BMV.argmax(-1)
        return token_BM, torch.zeros_like(token_BM, dtype=torch.bool)
    eos_E = torch.tensor(rules.eos_ids, device=logits_NV.device)
    would_stop_BM = torch.isin(scores_BMV.argmax(-1), eos_E)
    return scores_BMV.index_fill(2, eos_E, -torch.inf).argmax(-1), would_stop_BM


def greedy_plain(
    logits_NV: torch.Tensor,
    read_BM: torch.Tensor,
    seen_BV: torch.Tensor | None,
    rules: Rules,
    into_BM: torch.Tensor,
) -> None:
    """Write the tokens that are picked to `into_BM`."""
    into_BM.copy_(pick_plain(logits_NV, read_BM, seen_BV, rules)[0])


CHUNK = 2048


@jit
def _best(score, index, AXIS: tl.constexpr):
    """The largest score and the first index that has it. NaN is the largest, as in torch.argmax: an index past the
    vocabulary would be read from the embedding next."""
    score = tl.where(score == score, score, float("inf"))
    peak = tl.max(score, axis=AXIS, keep_dims=True)
    return peak, tl.min(tl.where(score == peak, index, 2147483647), axis=AXIS)


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
    peak, place = _best(tl.where(is_eos, float("-inf"), score), index, 0)
    tl.store(peaks + at + tl.arange(0, 1), peak)
    tl.store(places + at, place)
    peak, place = _best(tl.where(is_eos, score, float("-inf")), index, 0)
    tl.store(peaks + at + 1 + tl.arange(0, 1), peak)
    tl.store(places + at + 1, place)


@jit
def best_of_rows(
    peaks, places, row_R, rows, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(token [R], whether the choice would have been EOS [R]) of rows, from the best of their chunks."""
    chunk_C = tl.arange(0, BLOCK_C)
    at_RC = (row_R[:, None] * CHUNKS + chunk_C[None, :]) * 2
    inside_RC = (row_R < rows)[:, None] & (chunk_C < CHUNKS)[None, :]
    peak_R1, place_R = _best(
        tl.load(peaks + at_RC, mask=inside_RC, other=float("-inf")),
        tl.load(places + at_RC, mask=inside_RC, other=2147483647),
        1,
    )
    eos_R1, eos_place_R = _best(
        tl.load(peaks + at_RC + 1, mask=inside_RC, other=float("-inf")),
        tl.load(places + at_RC + 1, mask=inside_RC, other=2147483647),
        1,
    )
    peak_R, eos_R = tl.max(peak_R1, axis=1), tl.max(eos_R1, axis=1)
    return place_R.to(tl.int64), (eos_R > peak_R) | ((eos_R == peak_R) & (eos_place_R < place_R))


@jit
def _greedy_rows(
    peaks, places, token, rows, CHUNKS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    wait_for_previous(PDL)
    row_R = tl.arange(0, BLOCK_R)
    token_R, _ = best_of_rows(peaks, places, row_R, rows, CHUNKS, BLOCK_C)
    tl.store(token + row_R, token_R, mask=row_R < rows)


def best_of_chunks(
    logits_NV: torch.Tensor, read_BM: torch.Tensor, seen_BV: torch.Tensor | None, rules: Rules
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, indices) [N, chunks, 2]: the best token that is no EOS, and the best EOS."""
    (N, V), M = logits_NV.shape, read_BM.shape[1]
    chunks = ceil_div(V, CHUNK)
    peaks = torch.empty(N, chunks, 2, dtype=torch.float32, device=logits_NV.device)
    places = torch.empty(N, chunks, 2, dtype=torch.int32, device=logits_NV.device)
    _greedy_chunk[(N, chunks)](
        logits_NV, read_BM.contiguous(), logits_NV if seen_BV is None else seen_BV.view(torch.uint8), rules.penalty,
        _eos_tensor(rules.eos_ids, logits_NV.device), peaks, places, M, V, seen_BV is not None, len(rules.eos_ids), CHUNK,
        num_warps=4, **launch_options(),
    )  # fmt: skip
    return peaks, places


def greedy(
    logits_NV: torch.Tensor,
    read_BM: torch.Tensor,
    seen_BV: torch.Tensor | None,
    rules: Rules,
    into_BM: torch.Tensor,
) -> None:
    """`greedy_plain` in two launches: chunks of the vocabulary, then rows."""
    peaks, places = best_of_chunks(logits_NV, read_BM, seen_BV, rules)
    N, chunks = peaks.shape[:2]
    _greedy_rows[(1,)](
        peaks,
        places,
        into_BM,
        N,
        chunks,
        power_of_two(N),
        power_of_two(chunks),
        num_warps=4,
        **launch_options(),
    )


@functools.cache
def _eos_tensor(eos_ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """On the device before any capture: a capture cannot copy from the host."""
    return torch.tensor(eos_ids or (0,), dtype=torch.int32, device=device)
