"""Prompts have exactly their length, hold what is asked for where they say, and are the same for everyone."""

import math
from collections import Counter

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from workers.cell import ModelRef
from workers.models.tokenizer import load_tokenizer
from workers.retrieval.prompts import PromptTooShort, PromptWriter, frame_of, trials, write_all
from workers.retrieval.tasks import TASKS, is_right, places, sample
from workers.text import builtin

DEPTHS, SAMPLES = 3, 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("pocket", ModelRef(target="pocket"))


@pytest.fixture(scope="module")
def corpus(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(builtin.held_out_documents()[0] * 3, verbose=False)["input_ids"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [333, 1000])
def test_every_task_at_an_exact_length(
    tokenizer: PreTrainedTokenizerBase, corpus: list[int], task: str, length: int
) -> None:
    writer = PromptWriter(frame_of(tokenizer), length, corpus)
    prompts, at = write_all(writer, task, DEPTHS, SAMPLES, seed=0)
    asked = trials(task, DEPTHS, SAMPLES, seed=0)
    assert prompts.shape == (SAMPLES * (DEPTHS if TASKS[task].placed else 1), length)
    for ids, trial, needle_at in zip(prompts, asked, at, strict=True):
        text = tokenizer.decode(ids)
        assert all(answer in text for answer in trial.expected)
        made = sample(task, 0, trial.place, trial.index)
        assert text.endswith(made.question)
        if trial.place is None:
            assert needle_at == -1
            continue
        needle = made.needles[0].text
        assert tokenizer.decode(ids[needle_at:]).startswith(needle)
        assert needle_at == pytest.approx(trial.place * (length - 30), abs=90)
    again, _ = write_all(PromptWriter(frame_of(tokenizer), length, corpus), task, DEPTHS, SAMPLES, seed=0)
    assert np.array_equal(prompts, again)
    other, _ = write_all(writer, task, DEPTHS, SAMPLES, seed=1)
    assert not np.array_equal(prompts, other)


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_of_another_sample_is_right_by_chance(task: str) -> None:
    """Who guesses one of the possible answers: pairs of samples with the same answer, among all pairs."""
    count = 3000
    answers = Counter(frozenset(sample(task, 0, None, index).expected) for index in range(count))
    found = sum(times * (times - 1) // 2 for times in answers.values())
    expected = TASKS[task].chance * count * (count - 1) / 2
    assert abs(found - expected) <= 4 * math.sqrt(expected) + 0.5


def test_the_text_before_a_needle_is_the_same_for_all_samples(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts, at = write_all(PromptWriter(frame_of(tokenizer), 600), "single", DEPTHS, 4, seed=0)
    for ids, needle_at in zip(prompts, at, strict=True):
        assert np.array_equal(ids[:needle_at], prompts[-1][:needle_at])


def test_too_short_is_told_with_the_length_that_would_do(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PromptTooShort, match=r"task several-keys takes (\d+) tokens") as told:
        write_all(PromptWriter(frame_of(tokenizer), 20, [5] * 20), "several-keys", 1, 1, seed=0)
    enough = int(str(told.value).split()[3])
    write_all(PromptWriter(frame_of(tokenizer), enough, [5] * enough), "several-keys", 1, 1, seed=0)


def test_a_chat_template_surrounds_the_text_and_the_answer_is_begun_for_the_model(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    chat = load_tokenizer("pocket", ModelRef(target="pocket"))
    chat.chat_template = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}<a>"
    prompts, at = write_all(PromptWriter(frame_of(chat), 200), "single", 1, 1, seed=0)
    text = chat.decode(prompts[0])
    assert text.startswith("<u> The number of")
    assert "?</u><a>The number of" in text
    assert text.endswith(" is")
    assert at[0] == len(chat("<u>")["input_ids"])
    assert len(prompts[0]) == 200


def test_places_go_from_the_beginning_to_the_end() -> None:
    assert places("single", 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert places("single", 1) == [0.0]
    assert places("variables", 5) == [None]


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (" 12345. What", ("12345",), True),
        (" 123456", ("12345",), True),
        (" 12 345", ("12345",), False),
        (" is 5, 6", ("6", "5"), True),
        ("5", ("6", "5"), False),
        ("ABC and, Def", ("abc", "DEF"), True),
        ("", ("1",), False),
    ],
)
def test_an_answer_is_right_where_it_contains_all(
    answer: str, expected: tuple[str, ...], right: bool
) -> None:
    assert is_right(answer, expected) is right
