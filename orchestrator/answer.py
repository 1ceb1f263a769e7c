"""The report's first sentences as data, in `answer.json` of a run folder: for a terminal, `status` and scripts.

Free of Polars and of pictures: reading it takes no time.
"""

import dataclasses
import json
from dataclasses import dataclass

from orchestrator.journal.store import Store

FILE = "answer.json"


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One mode on one card. `bracket`, `predicted`, `speed`: as the report writes them. `speed`: at the longest measured
    length that passed, with that length."""

    on: str
    mode: str
    bracket: str
    predicted: str
    speed: str


@dataclass(frozen=True, slots=True)
class RunAnswer:
    """`sentences`: of the report's first section, plain text."""

    sentences: tuple[str, ...]
    lines: tuple[AnswerLine, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def read_answer(store: Store) -> RunAnswer | None:
    """Return the answer of the last report of this folder. None where there is none, or one of another version."""
    try:
        found = json.loads(store.read(FILE))
        return RunAnswer(tuple(found["sentences"]), tuple(AnswerLine(**line) for line in found["lines"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
