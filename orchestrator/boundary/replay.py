"""Tells a search what a finished probe found. The driver and the tables both do it here."""

from collections.abc import Iterable

from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Probe, Search
from workers.attempt import Attempt


def observe(question: Question, search: Search, probe: Probe, attempt: Attempt) -> bool:
    """Let `search` observe the final attempt of one of its probes. Returns False where the attempt says nothing about
    memory: the model does not load, or the run crashes or is too slow. The next probe would end alike."""
    reading = question.read(attempt)
    if reading is None:
        search.observe_lost(probe)
        return False
    search.observe(probe, reading.passed, reading.passed_up_to, reading.fails_from)
    return True


def replay(question: Question, search: Search, attempts: Iterable[Attempt]) -> tuple[list[Attempt], bool]:
    """Let `search` observe those of `attempts` that are probes of `question`. Returns the attempts that say something
    about memory, and whether all of its probes do."""
    telling: list[Attempt] = []
    complete = True
    for attempt in attempts:
        if (probe := question.match(attempt.cell)) is None:
            continue
        if observe(question, search, probe, attempt):
            telling.append(attempt)
        else:
            complete = False
    return telling, complete
