"""Speculative greedy decoding, lossless: one round drafts gamma tokens, verifies them in one pass, commits.

Drafting, acceptance, penalty and commit stay on the device; a round past the asked length changes nothing, so
the host may learn late that it is done. Batch size 1. Speculative decoding: arXiv:2211.17192.
"""

import torch

from workers.engines.graph.graphs import Stage
from workers.engines.graph.model import CachedModel
from workers.engines.graph.state import Round, Rules, State


def draft(reader: CachedModel, state: State, rules: Rules, round_: Round) -> None:
    """Propose gamma tokens. The first pass reads two tokens: the draft may not have read the one before the
    pending one, which it proposed itself last; reading it twice writes the same key to the same slot."""
    torch.add(state.head, round_.offset_g1, out=round_.start_g1)
    seen_1V = None if state.seen_BV is None else state.seen_BV.clone()
    if round_.oracle is not None:
        round_.proposal_1g.copy_(round_.oracle.propose(state.count))
    read_1M = state.tail_B2
    for index in range(round_.gamma):
        logits_MV = reader.read(read_1M, round_.start_g1[index])
        if seen_1V is not None:
            seen_1V.scatter_(1, read_1M, True)
        proposed_11 = round_.proposal_1g[:, index : index + 1]
        into_11 = proposed_11 if round_.oracle is None else torch.empty_like(proposed_11)
        reader.kernels.greedy(logits_MV[-1:], read_1M[:, -1:], seen_1V, rules, into_11)
        read_1M = proposed_11


def verify(target: CachedModel, state: State, rules: Rules, round_: Round) -> None:
    """Read the pending token and the proposal in one pass; commit the target's own choices up to and including
    the first that differs. The rejected keys stay in their slots, behind the counter, seen by no query."""
    read_1M = torch.cat([state.tail_B2[:, 1:], round_.proposal_1g], dim=1)
    logits_MV = target.read(read_1M, state.head)
    target.kernels.accept(logits_MV, read_1M, state, rules, round_)


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
