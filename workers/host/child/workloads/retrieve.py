"""Asks for what was hidden in texts, and holds the answers against what was hidden."""

from collections.abc import Callable, Iterator

import torch

from workers.attempt import Phase
from workers.engines.session import Session, Unmeasured
from workers.host.child.cell_run import CellRun
from workers.host.events import Produced
from workers.modes import RetrievalAnswer
from workers.retrieval.prompts import Trial, trials
from workers.retrieval.tasks import is_right
from workers.text.prompts import answers_of


class OneOfMany(Unmeasured):
    """Records one of many prompts: phases and the cache go to the cell's recorder, the tokens of an answer do not."""

    def __init__(self, run: CellRun) -> None:
        super().__init__()
        self._recorder = run.recorder

    def phase(self, phase: Phase) -> None:
        if phase is not Phase.PREPARE:
            self._recorder.phase(phase)

    def prompt(self, read: int) -> None:
        self._recorder.prompt(read)

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._recorder.count_cache_with(kv_cache_bytes)


def retrieve(run: CellRun, session: Session, ids_T: torch.Tensor) -> int:
    """Return the tokens of a prompt. The prompts of `ids_T` [N * length] are answered `batch_size` at a time; what the prompts
    of one depth share is read once, where the engine and the policy allow it."""
    cell = run.cell
    asked = cell.retrieve
    assert asked is not None
    questions = trials(asked.task, asked.depths, asked.samples, cell.seed)
    new_tokens = cell.workload_spec.new_tokens(cell)
    answers: list[list[int]] = []
    for prompts_NT in ids_T.view(len(questions), -1).split(asked.samples):  # all of one depth
        session.keep(shared_beginning(prompts_NT))
        said = [
            session.generate(prompt_BT, new_tokens, OneOfMany(run)).ids_BT
            for prompt_BT in _batches(run, prompts_NT, len(answers))
        ]
        answers += torch.cat(said)[: len(prompts_NT)].tolist()
    run.recorder.tokens(cell.length)
    run.end(cell.length)
    run.results = _compared(run, questions, answers)
    return cell.length


def shared_beginning(prompts_NT: torch.Tensor) -> torch.Tensor:
    """Return the tokens with which all rows begin, all but the last one at most."""
    same_T = (prompts_NT == prompts_NT[0]).all(0)[:-1]
    return prompts_NT[0, : int(same_T.cumprod(0).sum())]


def _batches(run: CellRun, prompts_NT: torch.Tensor, before: int) -> Iterator[torch.Tensor]:
    """All of one size, so that an engine prepares once: the last prompt fills up the last batch. `before`: prompts that were
    answered before these; each batch is told as progress."""
    cell, size = run.cell, run.cell.batch_size
    for first in range(0, len(prompts_NT), size):
        part = prompts_NT[first : first + size]
        yield torch.cat([part, part[-1:].expand(size - len(part), -1)])
        run.send(Produced(cell.length * (before + first + len(part)) // cell.workload_spec.texts(cell)))


def _compared(run: CellRun, questions: list[Trial], answers: list[list[int]]) -> tuple[RetrievalAnswer, ...]:
    texts, needles_at, chat = answers_of(run.cell, answers)
    return tuple(
        RetrievalAnswer(
            depth=question.place,
            needle_at=at if at >= 0 else None,
            answer=text,
            expected=" ".join(question.expected),
            correct=is_right(text, question.expected),
            chat=chat,
        )
        for question, text, at in zip(questions, texts, needles_at, strict=True)
    )
