"""From a sample to the ids of a prompt of an exact length, in a model's own tokens."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from transformers import PreTrainedTokenizerBase

from workers.retrieval.tasks import TASKS, Haystack, RetrievalSample, places, sample
from workers.retrieval.words import NOISE
from workers.text import CorpusError
from workers.text.corpus import beginning

#: Stands for the text in a chat template while it is taken apart.
_MARK = "MARKEDTEXT"


class PromptTooShort(CorpusError):
    """A task's own words do not fit into a prompt of the length that is asked for. One line."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the text: of a chat template, or the mark of a text's beginning alone.

    `encode`: text -> ids, without marks. `is_chat`: whether there is a template.
    """

    encode: Callable[[str], list[int]]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    is_chat: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """`ids`: [length]. `needle_at`: the index of the asked needle's first token; None without a depth."""

    ids: tuple[int, ...]
    needle_at: int | None


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Take a tokenizer's chat template apart; without one, the marks that it puts before a text. Raises `CorpusError`."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    if not tokenizer.chat_template:
        return Frame(encode, tuple(beginning(tokenizer)))
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(said).split(_MARK)
    return Frame(encode, tuple(encode(before)), tuple(encode(after)), is_chat=True)


class PromptWriter:
    """Writes prompts of `length` tokens. `corpus`: ids of a haystack of real text, at least `length` of them where a
    task reads one."""

    def __init__(self, frame: Frame, length: int, corpus: Sequence[int] = ()) -> None:
        self._frame, self._length, self._corpus = frame, length, corpus
        self._encode = functools.cache(lambda text: tuple(frame.encode(text)))

    def write(self, task: str, place: float | None, made: RetrievalSample) -> Prompt:
        """Raises `PromptTooShort`.

        The haystack is the same for all samples of a task, up to the first needle.
        """
        question, answer_begins = made.question, ""
        if self._frame.is_chat:  # the user asks, the model's turn begins with the first words of the answer
            question, _, answer_begins = made.question.partition("? ")
            question += "?"
        head = (*self._frame.before, *self._encode(made.instruction))
        tail = (*self._encode(question), *self._frame.after, *self._encode(answer_begins))
        needles = [(needle.place, self._encode(needle.text)) for needle in made.needles]
        room = self._length - len(head) - len(tail) - sum(len(ids) for _, ids in needles)
        if room < 0:
            raise PromptTooShort(
                f"task {task} takes {self._length - room:,} tokens of this model without a haystack, {self._length:,} "
                "are the length: ask for more"
            )
        haystack, boundaries = self._haystack(TASKS[task].haystack, made, room)
        text, asked_at = _inserted(haystack, boundaries, needles)
        ids = (*head, *text, *tail)
        return Prompt(ids, None if place is None else len(head) + asked_at)

    def _haystack(
        self, kind: Haystack, made: RetrievalSample, room: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Exactly `room` ids, and the indices in them at which a needle may begin."""
        if kind is Haystack.TEXT:
            if len(self._corpus) < room:
                raise PromptTooShort(f"the corpus has {len(self._corpus):,} tokens, {room:,} are needed")
            return tuple(self._corpus[:room]), range(room + 1)
        if kind is Haystack.NOISE:
            return _filled((self._encode(f" {sentence}") for sentence in cycle(NOISE)), room)
        assert made.words is not None
        count = room // 3 + 1
        while True:  # as many words as fit; what is left over is filled with noise before them
            pieces = [self._encode(f" {word}") for word in made.words(count)]
            used = sum(map(len, pieces))
            if used <= room:
                break
            count = min(count - 1, count * room // used)
        filler, _ = _filled((self._encode(f" {sentence}") for sentence in cycle(NOISE)), room - used)
        return (*filler, *(id_ for piece in pieces for id_ in piece)), (0,)


def _filled(pieces: Iterable[Sequence[int]], room: int) -> tuple[list[int], list[int]]:
    """Pieces one after the other, cut at `room`; and where they begin."""
    found: list[int] = []
    begins = []
    for piece in pieces:
        begins.append(len(found))
        found.extend(piece)
        if len(found) >= room:
            break
    return found[:room], [index for index in begins if index <= room]


def _inserted(
    haystack: Sequence[int], boundaries: Sequence[int], needles: Sequence[tuple[float, Sequence[int]]]
) -> tuple[list[int], int]:
    """The text with its needles, and the index of the first needle of the list. Each goes to the last boundary before its
    place. Where two meet, they stand in the order of the list."""
    at = [
        max((index for index in boundaries if index <= place * len(haystack)), default=0)
        for place, _ in needles
    ]
    order = sorted(range(len(needles)), key=lambda number: at[number])
    text: list[int] = []
    done, asked_at = 0, 0
    for number in order:
        text.extend(haystack[done : at[number]])
        done = at[number]
        if number == 0:
            asked_at = len(text)
        text.extend(needles[number][1])
    text.extend(haystack[done:])
    return text, asked_at


@dataclass(frozen=True, slots=True)
class Trial:
    """One sample of a cell. `place`: None for a task without a depth."""

    place: float | None
    index: int
    expected: tuple[str, ...]


def trials(task: str, depths: int, samples: int, seed: int) -> list[Trial]:
    """All samples of a cell, depth by depth from the beginning of the text: what one depth's samples share, the next goes on
    from."""
    return [
        Trial(place, index, sample(task, seed, place, index).expected)
        for place in places(task, depths)
        for index in range(samples)
    ]


def write_all(
    writer: PromptWriter, task: str, depths: int, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts, int32 [N, length], and where their needles are, int32 [N], -1 without a depth.

    In the order of `trials`. Raises `PromptTooShort`.
    """
    prompts = [
        writer.write(task, question.place, sample(task, seed, question.place, question.index))
        for question in trials(task, depths, samples, seed)
    ]
    at = [-1 if prompt.needle_at is None else prompt.needle_at for prompt in prompts]
    return np.array([prompt.ids for prompt in prompts], dtype=np.int32), np.array(at, dtype=np.int32)
