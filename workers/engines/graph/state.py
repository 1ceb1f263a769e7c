"""What decoding changes besides the caches, and the rules that it follows. Tensors on the device, updated in place."""

from dataclasses import dataclass

import torch

from workers.engines.shared.oracle import Oracle

NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Rules:
    """What greedy means here: the score of a seen token is lowered, EOS is suppressed and noted."""

    penalty: float
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """The state of one run.

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


@dataclass(frozen=True, slots=True)
class Round:
    """What a round needs besides the two models.

    `proposal_1g`: the drafted tokens. `start_g1`: where the draft's passes begin, `offset_g1` from the head: the first one
    reads two tokens. Counters on the device.
    """

    gamma: int
    proposal_1g: torch.Tensor
    start_g1: torch.Tensor
    offset_g1: torch.Tensor
    rounds: torch.Tensor
    accepted: torch.Tensor
    oracle: Oracle | None

    def clear(self) -> None:
        self.rounds.zero_()
        self.accepted.zero_()


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


def new_round(gamma: int, oracle: Oracle | None, device: torch.device) -> Round:
    return Round(
        gamma=gamma,
        proposal_1g=torch.zeros(1, gamma, dtype=torch.int64, device=device),
        start_g1=torch.zeros(gamma, 1, dtype=torch.int64, device=device),
        offset_g1=torch.tensor([[-1], *([index] for index in range(1, gamma))], device=device),
        rounds=torch.tensor(0, device=device),
        accepted=torch.tensor(0, device=device),
        oracle=oracle,
    )
