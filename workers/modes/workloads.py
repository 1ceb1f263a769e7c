"""What a cell does with its model. To add a workload: a value here, its function in `workers.host.child.workloads`, and what it
measures: a table, a section of the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBucket:
    """Negative log-likelihood (nats, summed) of the tokens scored in positions [position_start, position_end)."""

    position_start: int
    position_end: int
    nll_sum: float
    num_tokens: int


class TextSizes(Protocol):
    """What of a cell says how much text its run needs."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def length(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a workload says of itself.

    `decodes`: the model chooses new tokens; else it reads a given text, which a decoder does not change.
    `has_prompt`: its cells read `prompt_tokens` and `repetition_penalty`.
    `measures_speed`: its runs count for speeds, divergences and boundaries.
    `text_tokens(cell)`: tokens of the corpus that a run reads. `positions(cell)`: positions that the model needs.
    `run`: `module:function` that runs it in the child: (run, session, ids [T]) -> tokens produced, or scored.
    `result`: a flat dataclass, whose instances are what it found (`Attempt.results`); its fields become columns.
    """

    name: str
    decodes: bool
    has_prompt: bool
    measures_speed: bool
    text_tokens: Callable[[TextSizes], int]
    positions: Callable[[TextSizes], int]
    run: str
    result: type | None = None

    @property
    def prefix(self) -> str:
        """Of the journal's columns that hold the fields of its results."""
        return f"{self.name}_"


#: New tokens behind a prompt, greedily, to a forced length. The last one is chosen and never read.
GENERATE = Workload(
    name="generate",
    decodes=True,
    has_prompt=True,
    measures_speed=True,
    text_tokens=lambda cell: cell.prompt_tokens,
    positions=lambda cell: cell.prompt_tokens + cell.length - 1,
    run="workers.host.child.workloads.generate:generate",
)
#: The likelihood of each token of a given text. The first one is read before anything is scored.
SCORE = Workload(
    name="score",
    decodes=False,
    has_prompt=False,
    measures_speed=False,
    text_tokens=lambda cell: cell.length + 1,
    positions=lambda cell: cell.length,
    run="workers.host.child.workloads.score:score",
    result=ScoreBucket,
)

WORKLOADS = {workload.name: workload for workload in (GENERATE, SCORE)}
