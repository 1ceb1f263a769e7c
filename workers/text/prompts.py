"""The prompts of a retrieval cell, as its model's tokens."""

import numpy as np

from workers.cell import Cell
from workers.models.tokenizer import load_tokenizer
from workers.retrieval.prompts import PromptWriter, frame_of, write_all
from workers.retrieval.tasks import TASKS, Haystack
from workers.text.corpus import beginning, token_ids


def prompt_ids(cell: Cell) -> np.ndarray:
    """Return the ids of all prompts one after the other, int32 [N * length], in the order of `workers.retrieval.prompts.trials`.

    Raises `CorpusError` where they do not fit into the length, and `LoadError` for the tokenizer.
    """
    return _written(cell)[0].reshape(-1)


def answers_of(cell: Cell, answers: list[list[int]]) -> tuple[list[str], list[int], bool]:
    """Return each answer's text, the index of each needle's first token (-1: no depth), and whether prompts are chats."""
    tokenizer = load_tokenizer(cell.model.target, cell.model)
    _, at = _written(cell)
    texts = [str(tokenizer.decode(ids)) for ids in answers]
    return texts, at.tolist(), bool(tokenizer.chat_template)


def _written(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    asked = cell.retrieve
    assert asked is not None
    tokenizer = load_tokenizer(cell.model.target, cell.model)
    corpus = np.empty(0, dtype=np.int32)
    if TASKS[asked.task].haystack is Haystack.TEXT:
        marks = len(beginning(tokenizer))
        corpus = token_ids(cell.corpus, cell.model.target, cell.model, 0, marks + cell.length)[marks:]
    writer = PromptWriter(frame_of(tokenizer), cell.length, corpus.tolist())
    return write_all(writer, asked.task, asked.depths, asked.samples, cell.seed)
