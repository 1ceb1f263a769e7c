"""The end of a pass: choose the next tokens, take them, move the counters. Of a step, and of a round's verification."""

import torch

from workers.engines.graph.kernels.greedy import best_of_chunks, best_of_rows, pick_plain
from workers.engines.graph.kernels.jit import jit, launch_options, power_of_two, tl
from workers.engines.graph.kernels.tiles import wait_for_previous
from workers.engines.graph.state import Round, Rules, State


def commit_plain(logits_BV: torch.Tensor, state: State, rules: Rules) -> None:
    """The pending token has been read: choose what follows it, which is pending now."""
    pending_B1 = state.tail_B2[:, 1:]
    token_B1, would_stop_B1 = pick_plain(logits_BV, pending_B1, state.seen_BV, rules)
    state.out_BT.scatter_(1, state.count.expand_as(token_B1), token_B1.int())
    stops_at = torch.where(would_stop_B1.any(), state.count, state.eos_at)
    state.eos_at.copy_(torch.minimum(state.eos_at, stops_at))
    if state.seen_BV is not None:
        state.seen_BV.scatter_(1, token_B1, True)
    state.tail_B2.copy_(torch.cat([pending_B1, token_B1], dim=1))
    state.head.add_(1)
    state.count.add_(1)


def accept_plain(
    logits_MV: torch.Tensor, read_1M: torch.Tensor, state: State, rules: Rules, round_: Round
) -> None:
    """The pending token and the proposal have been read: take the target's own choices up to and including the first
    that differs from the proposal. Nothing once there are as many tokens as asked for."""
    token_1M, would_stop_1M = pick_plain(logits_MV, read_1M, state.seen_BV, rules)
    agreed_1g = (token_1M[:, :-1] == round_.proposal_1g).cumprod(1)
    running = state.count < state.length
    taken = torch.where(running, agreed_1g.sum() + 1, 0)
    index_M = torch.arange(round_.gamma + 1, device=read_1M.device)
    kept_M = index_M < taken
    place_M = state.count + index_M
    wanted_M = kept_M & (place_M < state.length)

    # Places that are not kept lie in the spare behind the asked length, or are written again by a later round.
    write_M = torch.where(running, place_M, state.length + index_M)
    state.out_BT.scatter_(1, write_M[None], token_1M.int())
    stops_M = torch.where(would_stop_1M[0] & wanted_M, place_M, state.eos_at)
    state.eos_at.copy_(torch.minimum(state.eos_at, stops_M.min()))
    if state.seen_BV is not None:
        state.seen_BV.scatter_(1, torch.where(kept_M, token_1M, state.tail_B2[:, 1:]), True)
    both = torch.cat([state.tail_B2, token_1M], dim=1)
    state.tail_B2.copy_(both.gather(1, (taken + index_M[:2])[None]))
    state.head.add_(taken)
    state.count.add_(taken)
    round_.rounds.add_(running)
    round_.accepted.add_((taken - 1).clamp(min=0))


@jit
def _commit(
    peaks, places, tail, head, count, eos_at, out, out_row, seen, B, V,
    SEEN: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    b = tl.arange(0, BLOCK_B)
    token_B, would_stop_B = best_of_rows(peaks, places, b, B, CHUNKS, BLOCK_C)
    known, read, stopped_at = tl.load(count), tl.load(head), tl.load(eos_at)
    pending_B = tl.load(tail + 2 * b + 1, mask=b < B, other=0)
    stops = tl.max((would_stop_B & (b < B)).to(tl.int32), axis=0) == 1
    tl.debug_barrier()
    tl.store(out + b.to(tl.int64) * out_row + known, token_B.to(tl.int32), mask=b < B)
    tl.store(tail + 2 * b, pending_B, mask=b < B)
    tl.store(tail + 2 * b + 1, token_B, mask=b < B)
    if SEEN:
        tl.store(seen + b.to(tl.int64) * V + token_B, tl.full((BLOCK_B,), 1, tl.uint8), mask=b < B)
    tl.store(eos_at, tl.where(stops, tl.minimum(stopped_at, known), stopped_at))
    tl.store(head, read + 1)
    tl.store(count, known + 1)


def commit(logits_BV: torch.Tensor, state: State, rules: Rules) -> None:
    """`commit_plain` in two launches: chunks of the vocabulary, then everything else."""
    peaks, places = best_of_chunks(logits_BV, state.tail_B2[:, 1:], state.seen_BV, rules)
    B, chunks = peaks.shape[:2]
    seen = state.tail_B2 if state.seen_BV is None else state.seen_BV.view(torch.uint8)
    _commit[(1,)](
        peaks, places, state.tail_B2, state.head, state.count, state.eos_at, state.out_BT, state.out_BT.stride(0),
        seen, B, logits_BV.shape[1], state.seen_BV is not None, chunks, power_of_two(B), power_of_two(chunks),
        num_warps=4, **launch_options(),
    )  # fmt: skip


@jit
def _accept(
    peaks, places, proposal, tail, head, count, eos_at, out, seen, rounds, accepted, gamma, length,
    SEEN: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    m = tl.arange(0, BLOCK_M)
    token_M, would_stop_M = best_of_rows(peaks, places, m, gamma + 1, CHUNKS, BLOCK_C)
    known, read, stopped_at = tl.load(count), tl.load(head), tl.load(eos_at)
    before, pending = tl.load(tail), tl.load(tail + 1)
    rounds_so_far, accepted_so_far = tl.load(rounds), tl.load(accepted)
    proposed_M = tl.load(proposal + m, mask=m < gamma, other=0)
    running = known < length
    agreed = tl.min(tl.where((m < gamma) & (token_M == proposed_M), gamma, m), axis=0)
    taken = tl.where(running, agreed + 1, 0)
    place_M = known + m
    tl.debug_barrier()
    # Places that are not kept lie in the spare behind the asked length, or are written again by a later round.
    write_M = tl.where(running, place_M, length + m)
    tl.store(out + write_M, token_M.to(tl.int32), mask=m <= gamma)
    stops_M = would_stop_M & (m < taken) & (place_M < length)
    tl.store(eos_at, tl.minimum(stopped_at, tl.min(tl.where(stops_M, place_M, stopped_at), axis=0)))
    if SEEN:
        tl.store(seen + token_M, tl.full((BLOCK_M,), 1, tl.uint8), mask=m < taken)
    last = tl.sum(tl.where(m == taken - 1, token_M, 0), axis=0)
    second_last = tl.sum(tl.where(m == taken - 2, token_M, 0), axis=0)
    tl.store(tail, tl.where(taken == 0, before, tl.where(taken == 1, pending, second_last)))
    tl.store(tail + 1, tl.where(taken == 0, pending, last))
    tl.store(head, read + taken)
    tl.store(count, known + taken)
    tl.store(rounds, rounds_so_far + running.to(tl.int64))
    tl.store(accepted, accepted_so_far + tl.maximum(taken - 1, 0))


def accept(logits_MV: torch.Tensor, read_1M: torch.Tensor, state: State, rules: Rules, round_: Round) -> None:
    """`accept_plain` in two launches: chunks of the vocabulary, then everything else."""
    peaks, places = best_of_chunks(logits_MV, read_1M, state.seen_BV, rules)
    M, chunks = peaks.shape[:2]
    seen = state.tail_B2 if state.seen_BV is None else state.seen_BV.view(torch.uint8)
    _accept[(1,)](
        peaks, places, round_.proposal_1g, state.tail_B2, state.head, state.count, state.eos_at, state.out_BT, seen,
        round_.rounds, round_.accepted, round_.gamma, state.length, state.seen_BV is not None, chunks, power_of_two(M),
        power_of_two(chunks), num_warps=4, **launch_options(),
    )  # fmt: skip
