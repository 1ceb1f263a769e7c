"""Plain greedy decoding: a beginning, a step. Nothing in a step is read by the host."""

from collections.abc import Callable

import torch

from workers.engines.graph.graphs import Stage
from workers.engines.graph.model import CachedModel
from workers.engines.graph.prefill import Prefill
from workers.engines.graph.state import NEVER, Rules, State


def begin(
    target: CachedModel,
    prefill: Prefill,
    state: State,
    rules: Rules,
    prompt_BT: torch.Tensor,
    note: Callable[[int], None] = lambda read: None,
    kept: int = 0,
) -> None:
    """Read the prompt and choose the first new token. `prompt_BT`: int64 on the device, T > kept. `note`, `kept`: as in
    `Prefill.read`."""
    T = prompt_BT.shape[1]
    state.count.zero_()
    state.eos_at.fill_(NEVER)
    if state.seen_BV is not None:
        state.seen_BV.zero_().scatter_(1, prompt_BT, True)
    prefill.read(prompt_BT, note, kept)
    state.tail_B2[:, 1:].copy_(prompt_BT[:, -1:])
    state.head.fill_(T - 1)  # as if the last prompt token had been pending
    target.kernels.commit(target.logits(prefill.last_BE), state, rules)


def step(target: CachedModel, state: State, rules: Rules) -> None:
    """Read the pending token, choose the next."""
    logits_BV = target.read(state.tail_B2[:, 1:], state.head)
    target.kernels.commit(logits_BV, state, rules)


def stages(
    target: CachedModel, draft: CachedModel | None, state: State, rules: Rules, round_: None
) -> tuple[Stage, ...]:
    """The plain decoder: a step."""
    return (Stage(lambda: step(target, state, rules)),)
