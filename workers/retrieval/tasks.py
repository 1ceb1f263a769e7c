"""The tasks. To add one: a function that makes a sample, its line in `TASKS`, its row in `docs/sweep-file.md`.

A sample says what is hidden where, what is asked, and which answers are right, as text: no tokenizer is needed.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import comb, factorial, perm

from workers.retrieval.words import NOUNS

#: The values of facts.
_NUMBERS = range(10_000, 100_000)
#: Needles of a task that hides several.
_SEVERAL = 4
#: A variable's name, and the beginning of an invented word.
_LETTERS, _CONSONANTS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "bdfgklmnprstvz"
#: Words to be counted: how many are right, and how often each of these is there for one time of any other.
_COMMON, _TIMES = 3, 6


class Haystack(StrEnum):
    """What the needles are hidden in: sentences without meaning, the sweep's corpus, or the words of the sample itself."""

    NOISE = "noise"
    TEXT = "text"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Needle:
    """`place`: where its first token is, as a fraction of the haystack; 0: at its beginning."""

    place: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSample:
    """`question` ends where the answer begins. `expected`: all must be in the answer.

    `words`: of a haystack of words, drawn from in this order. `instruction`: stands before the haystack.
    """

    needles: tuple[Needle, ...] = ()
    question: str
    expected: tuple[str, ...]
    words: Callable[[int], list[str]] | None = None
    instruction: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`placed`: whether the sample's needle is at a given depth; the others are asked for once, without a depth.

    `answer_tokens`: new tokens that a model is given. `make(random, place)`: a sample. `chance`: of one guess by who knows the
    task and has not seen the text.
    """

    name: str
    what: str
    haystack: Haystack
    placed: bool
    answer_tokens: int
    chance: float
    make: Callable[[random.Random, float], RetrievalSample]


def sample(task: str, seed: int, place: float | None, index: int) -> RetrievalSample:
    """Return sample `index` at `place`: the same for every model, mode, engine and length."""
    drawn = random.Random(f"{task} {seed} {place} {index}")
    return TASKS[task].make(drawn, 0.0 if place is None else place)


def places(task: str, depths: int) -> list[float | None]:
    """Return `depths` places, evenly from the beginning to the end; of a task that is not placed, None once."""
    if not TASKS[task].placed:
        return [None]
    return [0.0] if depths == 1 else [number / (depths - 1) for number in range(depths)]


def is_right(answer: str, expected: tuple[str, ...]) -> bool:
    """Whether `answer` contains each of `expected`, letter case aside: RULER's measure, for a model that is not taught where
    to stop. What stands around it does not count."""
    return all(one.casefold() in answer.casefold() for one in expected)


def _number(drawn: random.Random) -> str:
    return str(drawn.choice(_NUMBERS))


def _fact(key: str, value: str) -> str:
    return f" The number of {key} is {value}."


def _ask(key: str) -> str:
    return f"\nWhat is the number of {key}? The number of {key} is"


def _passkey(drawn: random.Random, place: float) -> RetrievalSample:
    key = _number(drawn)
    needle = f" The pass key is {key}. Remember it. {key} is the pass key."
    return RetrievalSample(
        needles=(Needle(place, needle),), question="\nWhat is the pass key? The pass key is", expected=(key,)
    )


def _single(drawn: random.Random, place: float) -> RetrievalSample:
    key, value = drawn.choice(NOUNS), _number(drawn)
    return RetrievalSample(needles=(Needle(place, _fact(key, value)),), question=_ask(key), expected=(value,))


def _several_keys(drawn: random.Random, place: float) -> RetrievalSample:
    """One is asked for. The others, each with its own number, lie anywhere."""
    key, *others = drawn.sample(NOUNS, _SEVERAL)
    value = _number(drawn)
    needles = [Needle(place, _fact(key, value))]
    needles += [Needle(drawn.random(), _fact(other, _number(drawn))) for other in others]
    return RetrievalSample(needles=tuple(needles), question=_ask(key), expected=(value,))


def _several_values(drawn: random.Random, place: float) -> RetrievalSample:
    """One key has several numbers, in several places. All are asked for."""
    key, values = drawn.choice(NOUNS), [_number(drawn) for _ in range(_SEVERAL)]
    return RetrievalSample(
        needles=tuple(Needle(drawn.random(), _fact(key, value)) for value in values),
        question=f"\nWhat are all the numbers of {key}? The {_SEVERAL} numbers of {key} are",
        expected=tuple(values),
    )


def _variables(drawn: random.Random, place: float) -> RetrievalSample:
    """A chain of assignments in order: which variables have the first one's value?"""
    names = ["".join(drawn.sample(_LETTERS, 3)) for _ in range(_SEVERAL + 1)]
    value = _number(drawn)
    said = [f" VAR {names[0]} = {value}."]
    said += [f" VAR {later} = VAR {earlier}." for earlier, later in pairwise(names)]
    at = sorted(drawn.random() for _ in said)
    return RetrievalSample(
        needles=tuple(map(Needle, at, said)),
        question=f"\nWhich variables have the value {value}? The {len(names)} variables with the value {value} are",
        expected=tuple(names),
    )


def _common_words(drawn: random.Random, place: float) -> RetrievalSample:
    """Of a list in which a few words stand several times and all others once, the few."""
    common = drawn.sample(NOUNS, _COMMON)
    rare = [word for word in NOUNS if word not in common]
    seed = drawn.random()

    def words(count: int) -> list[str]:
        again = random.Random(seed)
        often = common * min(_TIMES, max(2, count // (2 * _COMMON)))
        others = [again.choice(rare) + str(number) for number in range(max(0, count - len(often)))]
        found = often + others
        again.shuffle(found)
        return found

    return RetrievalSample(
        instruction="Here is a list of words. Remember those that come more than once:",
        words=words,
        question=f"\nWhich words come more than once? The {_COMMON} words are",
        expected=tuple(common),
    )


def _frequent_words(drawn: random.Random, place: float) -> RetrievalSample:
    """Of a text in invented words, whose frequencies fall as one over the rank squared, the three most frequent."""
    coined = ["".join(drawn.choices(_CONSONANTS, k=2)) + drawn.choice(NOUNS) for _ in range(40)]
    seed = drawn.random()

    def words(count: int) -> list[str]:
        weights = [(rank + 1) ** -2 for rank in range(len(coined))]
        shares = [round(weight / sum(weights) * count) for weight in weights]
        found = [word for word, share in zip(coined, shares, strict=True) for _ in range(share)]
        found += coined[-1:] * (count - len(found))
        random.Random(seed).shuffle(found)
        return found[:count]

    return RetrievalSample(
        instruction="Here is a text in an unknown language. Count its words:",
        words=words,
        question=f"\nWhich words are the most frequent? The {_COMMON} most frequent words are",
        expected=tuple(coined[:_COMMON]),
    )


#: Of one guess of a number, and of several things out of many in any order.
_ONE = 1 / len(_NUMBERS)
_COINED = len(_CONSONANTS) ** 2 * len(NOUNS)


def _all_of(count: int, many: int) -> float:
    return factorial(count) / many**count


TASKS = {
    task.name: task
    for task in (
        Task(name="passkey", what="one pass key in noise", haystack=Haystack.NOISE, placed=True, answer_tokens=12, chance=_ONE, make=_passkey),
        Task(name="single", what="one number in noise", haystack=Haystack.NOISE, placed=True, answer_tokens=12, chance=_ONE, make=_single),
        Task(name="single-text", what="one number in real text", haystack=Haystack.TEXT, placed=True, answer_tokens=12, chance=_ONE, make=_single),
        Task(name="several-keys", what="one of several numbers in real text", haystack=Haystack.TEXT, placed=True, answer_tokens=12, chance=_ONE, make=_several_keys),
        Task(name="several-values", what="all numbers of one key in real text", haystack=Haystack.TEXT, placed=False, answer_tokens=64, chance=_all_of(_SEVERAL, len(_NUMBERS)), make=_several_values),
        Task(name="variables", what="a chain of assignments in noise", haystack=Haystack.NOISE, placed=False, answer_tokens=48, chance=_all_of(_SEVERAL + 1, perm(len(_LETTERS), 3)), make=_variables),
        Task(name="common-words", what="the words that come more than once", haystack=Haystack.WORDS, placed=False, answer_tokens=32, chance=1 / comb(len(NOUNS), _COMMON), make=_common_words),
        Task(name="frequent-words", what="the most frequent words", haystack=Haystack.WORDS, placed=False, answer_tokens=48, chance=_all_of(_COMMON, _COINED), make=_frequent_words),
    )
}  # fmt: skip
