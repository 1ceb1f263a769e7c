"""Plain greedy decoding: a state, a beginning, a step. Nothing in a step is read by the host."""

from dataclasses import dataclass

import torch

from workers.engines.graph.graphs import Stage
from workers.engines.graph.kernels import Kernels
from workers.engines.graph.model import CachedModel
from workers.engines.graph.prefill import Prefill

NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Rules:
    """What greedy means here: the score of a seen token is lowered, EOS is suppressed and noted."""

    penalty: float
    eos_ids: tuple[int, ...]

    def pick(
        self, kernels: Kernels, logits_NV: torch.Tensor, read_BM: torch.Tensor, seen_BV: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.greedy(logits_NV, read_BM, seen_BV, self.penalty, self.eos_ids)


@dataclass(frozen=True, slots=True)
class State:
    """Everything that decoding changes besides the caches; tensors on the device, updated in place.

    `tail_B2`: the token before the pending one, and the pending one: chosen, not yet read. `head`: tokens read
    (the pending one's position). `count`: new tokens known. `out_BT` has spare places behind the asked length,
    for what a last round gives too much.
    """

    tail_B2: torch.Tensor
    head: torch.Tensor
    count: torch.Tensor
    eos_at: torch.Tensor
    out_BT: torch.Tensor
    seen_BV: torch.Tensor | None
    length: int


def new_state(
    batch: int, length: int, spare: int, vocab_size: int, penalty: float, device: torch.device
) -> State:
    def scalar(value: int) -> torch.Tensor:
        return torch.tensor(value, device=device)

    return State(
        tail_B2=torch.zeros(batch, 2, dtype=torch.int64, device=device),
        head=scalar(0),
        count=scalar(0),
        eos_at=scalar(NEVER),
        out_BT=torch.zeros(batch, length + spare, dtype=torch.int32, device=device),
        seen_BV=None if penalty == 1.0 else torch.zeros(batch, vocab_size, dtype=torch.bool, device=device),
        length=length,
    )


def begin(target: CachedModel, prefill: Prefill, state: State, rules: Rules, prompt_BT: torch.Tensor) -> None:
    """Read the prompt and choose the first new token. `prompt_BT`: int64 on the device, T >= 1."""
    T = prompt_BT.shape[1]
    state.count.zero_()
    state.head.zero_()
    state.eos_at.fill_(NEVER)
    if state.seen_BV is not None:
        state.seen_BV.zero_().scatter_(1, prompt_BT, True)
    prefill.read(prompt_BT)
    last_B1 = prompt_BT[:, -1:]
    picked = rules.pick(target.kernels, target.logits(prefill.last_BE), last_B1, state.seen_BV)
    state.tail_B2[:, 1:].copy_(last_B1)
    state.head.fill_(T - 1)  # as if the last prompt token had been pending
    commit(state, *picked)


def step(reader: CachedModel, state: State, rules: Rules) -> None:
    """Read the pending token, choose the next."""
    pending_B1 = state.tail_B2[:, 1:]
    logits_BV = reader.read(pending_B1, state.head)
    commit(state, *rules.pick(reader.kernels, logits_BV, pending_B1, state.seen_BV))


def commit(state: State, token_B1: torch.Tensor, would_stop_B1: torch.Tensor) -> None:
    B = token_B1.shape[0]
    state.out_BT.scatter_(1, state.count.expand(B, 1), token_B1.int())
    state.eos_at.copy_(
        torch.where(would_stop_B1.any(), torch.minimum(state.eos_at, state.count), state.eos_at)
    )
    if state.seen_BV is not None:
        state.seen_BV.scatter_(1, token_B1, True)
    state.tail_B2.copy_(torch.cat([state.tail_B2[:, 1:], token_B1], dim=1))
    state.head.add_(1)
    state.count.add_(1)


def stages(
    target: CachedModel, draft: CachedModel | None, state: State, rules: Rules, round_: None
) -> tuple[Stage, ...]:
    """The plain decoder: a step."""
    return (Stage(lambda: step(target, state, rules)),)
