"""Speculative greedy decoding, lossless: one round drafts gamma tokens, verifies them in one pass, commits.

Drafting, acceptance, penalty and commit stay on the device; a round past the asked length changes nothing, so
the host may learn late that it is done. Batch size 1. Speculative decoding: arXiv:2211.17192.
"""

from dataclasses import dataclass

import torch

from workers.engines.graph.decode import Rules, State
from workers.engines.graph.graphs import Stage
from workers.engines.graph.model import CachedModel
from workers.engines.shared.oracle import Oracle


@dataclass(frozen=True, slots=True)
class Round:
    """What a round needs besides the two readers. `proposal_1g`: the drafted tokens. Counters on the device."""

    gamma: int
    proposal_1g: torch.Tensor
    rounds: torch.Tensor
    accepted: torch.Tensor
    oracle: Oracle | None

    def clear(self) -> None:
        self.rounds.zero_()
        self.accepted.zero_()


def new_round(gamma: int, oracle: Oracle | None, device: torch.device) -> Round:
    return Round(
        gamma=gamma,
        proposal_1g=torch.zeros(1, gamma, dtype=torch.int64, device=device),
        rounds=torch.tensor(0, device=device),
        accepted=torch.tensor(0, device=device),
        oracle=oracle,
    )


def draft(reader: CachedModel, state: State, rules: Rules, round_: Round) -> None:
    """Propose gamma tokens. The first pass reads two tokens: the draft may not have read the one before the
    pending one, which it proposed itself last; reading it twice writes the same key to the same slot."""
    read_1M, start = state.tail_B2, state.head - 1
    seen_1V = state.seen_BV
    if seen_1V is not None:
        seen_1V = seen_1V.clone()
    if round_.oracle is not None:
        round_.proposal_1g.copy_(round_.oracle.propose(state.count))
    for index in range(round_.gamma):
        logits_MV = reader.read(read_1M, start)
        if seen_1V is not None:
            seen_1V.scatter_(1, read_1M, True)
        token_11, _ = rules.pick(reader.kernels, logits_MV[-1:], read_1M[:, -1:], seen_1V)
        if round_.oracle is None:
            round_.proposal_1g[:, index : index + 1].copy_(token_11)
        start = state.head + index + 1
        read_1M = round_.proposal_1g[:, index : index + 1]


def verify(reader: CachedModel, state: State, rules: Rules, round_: Round) -> None:
    """Read the pending token and the proposal in one pass; commit the target's own choices up to and including
    the first that differs. The rejected keys stay in their slots, behind the counter, seen by no query."""
    read_1M = torch.cat([state.tail_B2[:, 1:], round_.proposal_1g], dim=1)
    logits_MV = reader.read(read_1M, state.head)
    token_1M, would_stop_1M = rules.pick(reader.kernels, logits_MV, read_1M, state.seen_BV)

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


def stages(
    target: CachedModel, draft_reader: CachedModel | None, state: State, rules: Rules, round_: Round
) -> tuple[Stage, ...]:
    """The decoder with a draft model: drafting and verification apart, so that they are timed apart."""
    assert draft_reader is not None
    return (
        Stage(lambda: draft(draft_reader, state, rules, round_)),
        *recording_stages(target, None, state, rules, round_),
    )


def recording_stages(
    target: CachedModel, draft_reader: CachedModel | None, state: State, rules: Rules, round_: Round
) -> tuple[Stage, ...]:
    """Verification alone, of a proposal that is always the same: how an oracle's recording is made."""
    return (Stage(lambda: verify(target, state, rules, round_)),)
