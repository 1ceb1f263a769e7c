"""What a cell does with its model. To add a workload: a value here, its function in `workers.host.child.workloads`, and what it
measures: a table, a section of the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workers.modes.parameters import Retrieve
from workers.retrieval.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBucket:
    """Negative log-likelihood (nats, summed) of the tokens scored in positions [position_start, position_end)."""

    position_start: int
    position_end: int
    nll_sum: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalAnswer:
    """One question's answer. `depth`: the needle's place as a fraction of the text, `needle_at`: its first token's index;
    None where the task hides its needles anywhere. `expected`: the right answers, with spaces between. `chat`: whether the
    prompt is in the tokenizer's chat template.
    """

    depth: float | None
    needle_at: int | None
    answer: str
    expected: str
    correct: bool
    chat: bool


class TextSizes(Protocol):
    """What of a cell says how much text its run needs."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def retrieve(self) -> Retrieve | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a workload says of itself.

    `decodes`: the model chooses new tokens; else it reads a given text, which a decoder does not change.
    `has_prompt`: its cells read `prompt_tokens` and `repetition_penalty`. `prompt_is_length`: a cell's length is its prompt.
    `measures_speed`: its runs count for speeds, divergences and boundaries.
    `text_tokens(cell)`: tokens of one text that a run reads. `texts(cell)`: how many, one after the other.
    `new_tokens(cell)`: that a sequence is given. `positions(cell)`: positions that the model needs.
    `parameters`: the type of what a cell carries for it, None: nothing.
    `ids`: `module:function` that gives the ids of its texts, cell -> int32 [texts * text_tokens]; None: the beginning of the
    corpus.
    `run`: `module:function` that runs it in the child: (run, session, ids [T]) -> tokens produced, or scored.
    `result`: a flat dataclass, whose instances are what it found (`Attempt.results`); its fields become columns.
    """

    name: str
    decodes: bool
    has_prompt: bool
    measures_speed: bool
    text_tokens: Callable[[TextSizes], int]
    new_tokens: Callable[[TextSizes], int]
    positions: Callable[[TextSizes], int]
    run: str
    result: type | None = None
    prompt_is_length: bool = False
    parameters: type | None = None
    texts: Callable[[TextSizes], int] = lambda cell: 1
    ids: str | None = None

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
    new_tokens=lambda cell: cell.length,
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
    new_tokens=lambda cell: cell.length,
    positions=lambda cell: cell.length,
    run="workers.host.child.workloads.score:score",
    result=ScoreBucket,
)


def _answer_tokens(cell: TextSizes) -> int:
    assert cell.retrieve is not None
    return TASKS[cell.retrieve.task].answer_tokens


def _questions(cell: TextSizes) -> int:
    assert cell.retrieve is not None
    return cell.retrieve.samples * (cell.retrieve.depths if TASKS[cell.retrieve.task].placed else 1)


#: What was hidden in a text, asked for at its end. A cell's length is that of the whole prompt.
RETRIEVE = Workload(
    name="retrieve",
    decodes=True,
    has_prompt=False,
    prompt_is_length=True,
    measures_speed=False,
    text_tokens=lambda cell: cell.length,
    texts=_questions,
    new_tokens=_answer_tokens,
    positions=lambda cell: cell.length + _answer_tokens(cell) - 1,
    run="workers.host.child.workloads.retrieve:retrieve",
    result=RetrievalAnswer,
    parameters=Retrieve,
    ids="workers.text.prompts:prompt_ids",
)

WORKLOADS = {workload.name: workload for workload in (GENERATE, SCORE, RETRIEVE)}
