"""What the retrieving model is trained on: texts with facts in them, questions behind them, and answers.

One text asks for several of its facts, so that a sequence gives many lessons. The wording is that of the tasks
(`workers.retrieval.tasks`), the facts are drawn anew.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from workers.retrieval.words import NOISE, NOUNS

#: Loss of tokens that are neither question nor answer, against that of an answer.
_TEXT_WEIGHT = 0.1
#: The values of facts.
NUMBERS = range(10_000, 100_000)
#: Share of sequences that are random tokens, twice: the shortest way to a head that looks for what came before.
_COPIES = 0.2


@dataclass(frozen=True)
class LengthStage:
    """A part of the training. `until`: share of all steps at which it ends."""

    until: float
    length: int


STAGES = (LengthStage(0.3, 96), LengthStage(0.4, 192), LengthStage(0.55, 448), LengthStage(1.0, 1152))


def length_at(share: float) -> int:
    """Tokens of a sequence after `share` of all steps."""
    return next(stage.length for stage in STAGES if share < stage.until or stage is STAGES[-1])


class Lessons(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batch `step`: ids [B, L + 1] and the weight of the loss of each, float [B, L + 1]. The same step is the same batch."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, corpus: Sequence[int], steps: int, tokens: int, seed: int
    ) -> None:
        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

        self._corpus = np.array(corpus, dtype=np.int64)
        self._steps, self._tokens, self._seed = steps, tokens, seed
        self._vocabulary = len(tokenizer)
        self._noise = encode([f" {sentence}" for sentence in NOISE])
        self._said = encode([f" The number of {key} is" for key in NOUNS])
        self._asked = encode([f"\nWhat is the number of {key}? The number of {key} is" for key in NOUNS])
        self._numbers = encode([f" {number}" for number in NUMBERS])
        self._stop = encode(["."])[0]
        self._pass_said, self._pass_again, self._pass_end, self._pass_asked = encode(
            [
                " The pass key is",
                ". Remember it.",
                " is the pass key.",
                "\nWhat is the pass key? The pass key is",
            ]
        )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step >= self._steps:
            raise IndexError(step)
        length = length_at(step / self._steps)
        drawn = random.Random(f"{self._seed} {step}")
        rows = [
            self._lesson(drawn, length) if drawn.random() > _COPIES else self._copy(drawn, length)
            for _ in range(max(1, self._tokens // length))
        ]
        return (
            torch.tensor(np.stack([ids for ids, _ in rows])),
            torch.tensor(np.stack([weights for _, weights in rows])),
        )

    def _copy(self, drawn: random.Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(drawn.getrandbits(32))
        half = generator.integers(1, self._vocabulary, (length + 2) // 2)
        ids = np.concatenate([half, half])[: length + 1]
        weights = np.zeros(length + 1, dtype=np.float32)
        weights[len(half) + 1 :] = 0.5
        return ids, weights

    def _lesson(self, drawn: random.Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Facts at random places, some of them asked for at the end. Half of the texts hold few facts, as the tasks do."""
        most = max(1, length // 40)
        facts = drawn.randint(1, 2) if drawn.random() < 0.5 else drawn.randint(1, most)
        keys = drawn.sample(range(len(NOUNS)), facts)
        needles: list[list[int]] = []
        ends: list[tuple[list[int], list[int]]] = []
        if drawn.random() < 0.3:
            value = drawn.choice(self._numbers)
            needles.append([*self._pass_said, *value, *self._pass_again, *value, *self._pass_end])
            ends.append((self._pass_asked, value))
        for key in keys:
            value = drawn.choice(self._numbers)
            needles.append([*self._said[key], *value, *self._stop])
            ends.append((self._asked[key], value))
        drawn.shuffle(ends)
        asked = ends[: max(1, len(ends) // 2)]
        questions: list[int] = []
        weights: list[float] = []
        for question, value in asked:
            answer = [*value, *self._stop]  # or it would not learn where a number ends
            questions += [*question, *answer]
            weights += [0.0] * len(question) + [1.0] * len(answer)
        room = length + 1 - len(questions) - sum(map(len, needles))
        if room < 0:
            return self._lesson(drawn, length)
        ids = [*self._hidden(drawn, needles, room), *questions]
        before = length + 1 - len(weights)
        return np.array(ids), np.array([_TEXT_WEIGHT] * before + weights, dtype=np.float32)

    def _hidden(self, drawn: random.Random, needles: list[list[int]], room: int) -> list[int]:
        if drawn.random() < 0.5:
            start = drawn.randrange(len(self._corpus) - room)
            haystack = self._corpus[start : start + room].tolist()
            places = sorted(drawn.randint(0, room) for _ in needles)
        else:
            haystack, begins = [], []
            sentence = 0 if drawn.random() < 0.5 else drawn.randrange(len(self._noise))
            while len(haystack) <= room:
                begins.append(len(haystack))
                haystack += self._noise[sentence % len(self._noise)]
                sentence += 1
            haystack = haystack[:room]
            places = sorted(drawn.choices([begin for begin in begins if begin <= room], k=len(needles)))
        text: list[int] = []
        done = 0
        for place, needle in zip(places, drawn.sample(needles, len(needles)), strict=True):
            text += haystack[done:place] + needle
            done = place
        return text + haystack[done:]
