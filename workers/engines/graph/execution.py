"""One shape made ready to run: models, caches, state, and the stages that a loop replays. Made before the first token."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from workers.attempt import Phase
from workers.engines.graph import decode
from workers.engines.graph.clock import Clock, Mark, clock_of
from workers.engines.graph.graphs import Stage
from workers.engines.graph.kept_prefix import PrefixRead
from workers.engines.graph.model import CachedModel
from workers.engines.graph.prefill import Prefill
from workers.engines.graph.state import NEVER, Round, Rules, State
from workers.engines.session import Generated, Recorder
from workers.engines.shared.oracle import Oracle

#: Rounds the host may be ahead of what it knows: enough to hide it, few enough to grow a full cache by need.
ROUNDS_IN_FLIGHT = 8
TIMES_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Execution:
    """`stages`: called in turn, they give at least one token and at most `most`."""

    target: CachedModel
    draft: CachedModel | None
    prefill: Prefill
    state: State
    rules: Rules
    round: Round | None
    stages: tuple[Stage, ...]

    @property
    def readers(self) -> tuple[CachedModel, ...]:
        return readers_of(self.target, self.draft)

    @property
    def most(self) -> int:
        return 1 if self.round is None else self.round.gamma + 1

    def nbytes(self) -> int:
        return sum(reader.cache.nbytes() for reader in self.readers)

    def fits(self, batch: int, prompt_tokens: int, length: int, oracle: Oracle | None) -> bool:
        shape = (self.state.out_BT.shape[0], self.prefill.prompt_tokens, self.state.length)
        return shape == (batch, prompt_tokens, length) and (self.round is None or self.round.oracle is oracle)

    def clear(self) -> None:
        """Full caches give their blocks back."""
        for reader in self.readers:
            reader.cache.clear()

    def reserve(self, tokens: int) -> None:
        for reader in self.readers:
            reader.cache.reserve(tokens)

    def begin(
        self,
        prompt_BT: torch.Tensor,
        note: Callable[[int], None] = lambda read: None,
        kept: PrefixRead | None = None,
    ) -> None:
        """`kept`: what the prompt begins with; the caches are empty then."""
        if self.round is not None:
            self.round.clear()
        if kept is not None:
            kept.put_into(self.readers)
        read = 0 if kept is None else len(kept.ids_P)
        decode.begin(self.target, self.prefill, self.state, self.rules, prompt_BT, note, read)


def readers_of(target: CachedModel, draft: CachedModel | None) -> tuple[CachedModel, ...]:
    """The target last: what a pass over the prompt leaves behind is the target's."""
    return (target,) if draft is None else (draft, target)


#: A decoder's stages: (target, draft, state, rules, round) -> called in turn, they give at least one token
StagesOf = Callable[[CachedModel, CachedModel | None, State, Rules, Any], tuple[Stage, ...]]


@dataclass(slots=True)
class _Report:
    """Hands progress on as it is learned, times now and then."""

    recorder: Recorder
    known: int = 1
    elapsed_s: float = 0.0
    first_index: int = 0
    times_s: list[float] = field(default_factory=lambda: [0.0])
    handed_on_at: float = field(default_factory=perf_counter)

    def round(self, known: int, took_s: float) -> None:
        """A round's tokens come at once; its time is shared out evenly among them."""
        fresh = known - self.known
        self.times_s += [self.elapsed_s + took_s * (i + 1) / fresh for i in range(fresh)]
        self.elapsed_s += took_s
        self.known = known
        self.recorder.tokens(known)
        if perf_counter() - self.handed_on_at >= TIMES_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self.recorder.token_times(self.first_index, self.times_s)
        self.first_index += len(self.times_s)
        self.times_s = []
        self.handed_on_at = perf_counter()


class _Round(NamedTuple):
    """`marks`: after each stage. `tokens`: their count, on the host once `told` has passed; it is fetched after the
    last stage's mark."""

    marks: list[Mark]
    tokens: torch.Tensor
    told: Mark


def execute(
    run: Execution, prompt_BT: torch.Tensor, recorder: Recorder, kept: PrefixRead | None = None
) -> Generated:
    """Prefill, then decode to the asked length. `prompt_BT`: int64 on the device. `kept`: as in `Execution.begin`.

    An out-of-memory error passes through after all tokens known by then were reported.
    """
    clock = clock_of(prompt_BT.device)
    recorder.phase(Phase.PREFILL)
    recorder.count_cache_with(run.nbytes)
    run.begin(prompt_BT, recorder.prompt, kept)
    started = clock.mark()
    clock.wait(started)
    recorder.phase(Phase.DECODE)
    recorder.tokens(1)
    stage_times = _decode(run, clock, started, recorder)
    state, round_ = run.state, run.round
    ids_BT = state.out_BT[:, : state.length].to("cpu", torch.int64)
    eos_at = int(state.eos_at)
    generated = Generated(ids_BT, None if eos_at == NEVER else eos_at)
    if round_ is None:
        return generated
    rounds = int(round_.rounds)
    return generated._replace(
        rounds=rounds,
        drafted=rounds * round_.gamma,
        accepted=int(round_.accepted),
        draft_step_s=median(stage_times[0]) / round_.gamma if rounds and len(stage_times) > 1 else None,
        verify_step_s=median(stage_times[-1]) if rounds else None,
    )


def _decode(run: Execution, clock: Clock, started: Mark, recorder: Recorder) -> list[list[float]]:
    """Seconds each stage took, round by round."""
    report = _Report(recorder)
    in_flight: deque[_Round] = deque()
    stage_times: list[list[float]] = [[] for _ in run.stages]
    previous = started

    def learn() -> None:
        nonlocal previous
        done = in_flight.popleft()
        clock.wait(done.told)
        begun = previous
        for times, mark in zip(stage_times, done.marks, strict=True):
            times.append(clock.seconds(begun, mark))
            begun = mark
        report.round(min(int(done.tokens), run.state.length), clock.seconds(previous, done.marks[-1]))
        previous = done.marks[-1]

    try:
        while report.known < run.state.length:
            bound = report.known + len(in_flight) * run.most
            if bound < run.state.length and len(in_flight) < ROUNDS_IN_FLIGHT:
                run.reserve(run.prefill.prompt_tokens + bound + run.most - 1)
                marks = []
                for stage in run.stages:
                    stage()
                    marks.append(clock.mark())
                tokens = clock.fetch(run.state.count)
                in_flight.append(_Round(marks, tokens, clock.mark()))
            else:
                learn()
    finally:
        while in_flight:
            learn()
        report.flush()
    return stage_times
