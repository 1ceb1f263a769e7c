"""`oomline fit`: a model, a card, an answer; nothing but a config is read."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from orchestrator.fit.answer import Fit
from orchestrator.fit.cards import CARDS, card_named
from orchestrator.fit.questions import NEW_TOKENS, ask, model_named
from orchestrator.predict.memory import fits
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.spec_error import SpecError

pytestmark = pytest.mark.usefixtures("own_answers")

#: The driver's share and a context leave some 80 MiB of it.
SMALL = "1260MiB"


def found(tokens: int | None = None, cards: tuple[str, ...] = (SMALL,), **keys: object) -> list[Fit]:
    sweep = {"models": [{"target": "random:pythia-14m"}], "modes": ["baseline"], "prefill_chunk": 256, **keys}
    return list(ask(sweep, cards, tokens).fits)


def test_the_longest_text_fits_and_one_a_tenth_longer_does_not() -> None:
    (each,) = found()
    assert each.longest_length is not None
    assert each.longest_length > 1000
    assert each.predicted_by == "rehearsal"
    assert sum(each.parts.values()) == each.peak_bytes
    shape = ModelShapes().of(each.question.cell).target
    assert shape is not None
    profile = each.question.card.profile()
    assert fits(each.question.at(each.longest_length), shape, None, profile)
    assert not fits(each.question.at(int(each.longest_length * 1.1)), shape, None, profile)


def test_a_text_that_does_not_fit_comes_with_the_cheapest_change_that_helps() -> None:
    expandable = {"allocator": ["expandable"]}
    (alone,) = found(**expandable)
    assert not alone.is_constant
    longest = alone.longest_length or 0
    (shorter,) = found(longest, **expandable)
    assert (shorter.fits, shorter.change) == (True, None)
    (batch,) = found(longest, batch_sizes=[4], **expandable)
    assert batch.fits is False
    assert batch.change is not None
    assert batch.change.words == "a batch of 1"
    (fp8,) = found(int(1.2 * longest), **expandable)
    assert fp8.change is not None
    assert fp8.change.words == "keys and values in fp8"
    (far,) = found(40 * longest, **expandable)
    assert far.change is not None
    assert far.change.words == "mode streaming"


def test_keys_and_values_in_fewer_bits_go_further_and_are_named() -> None:
    plain, fp8 = found(kv_dtype=["auto", "fp8"])
    assert (plain.question.mode, fp8.question.mode) == ("baseline", "baseline, fp8 KV")
    assert (fp8.longest_length or 0) > (plain.longest_length or 0)


def test_constant_memory_has_no_longest_text() -> None:
    (each,) = found(10**6, modes=["streaming"])
    assert (each.fits, each.longest_length) == (True, None)


def test_constant_memory_ends_where_a_whole_pass_over_the_prompt_does_not_fit() -> None:
    (each,) = found(10**6, ("1400MiB",), modes=["streaming"], prefill_chunk=16_384)
    assert each.fits is False
    assert each.longest_length is not None
    assert 256 < each.longest_length < 16_384
    assert each.is_constant
    assert each.change is not None
    assert each.change.words == "a prompt in passes of 512 tokens"


def test_the_peak_in_constant_memory_is_that_of_a_long_text() -> None:
    (peak,), (long,) = (found(n, ("H100",), modes=["streaming"], prefill_chunk=8192) for n in (None, 10**6))
    assert peak.longest_length is None
    assert peak.peak_bytes == long.peak_bytes


def test_a_mode_that_the_engine_refuses_has_no_answer_but_its_reason(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 512})
    )
    (each,) = found(models=[{"target": model_named(str(config))}], modes=["streaming"])
    assert each.refused is not None
    assert "cannot stream" in each.refused
    assert each.peak_bytes is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100", "H100"),
        ("RTX4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("A100-80GB", "A100 80GB"),
        ("24GiB", "24GiB"),
    ],
)
def test_cards_are_found_by_what_people_call_them(text: str, name: str) -> None:
    assert card_named(text).name == name


@pytest.mark.parametrize(("text", "words"), [("A100", "A100 40GB"), ("H1000", "H100"), ("24GiG", "24GiG")])
def test_a_card_that_is_not_known_is_refused_with_the_nearest(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        card_named(text)


def test_a_card_is_less_than_its_name_says() -> None:
    for card in CARDS:
        profile = card.profile()
        assert 0.9 * card.total_bytes < profile.capacity(None) < card.total_bytes


def test_the_command_prints_what_scripts_rely_on() -> None:
    arguments = ["fit", "random:pythia-14m", "--card", SMALL, "--mode", "baseline", "--prefill-chunk", "256"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert {"bytes_per_token", "constant_bytes", "weights_bytes"} <= set(told)
    assert told["bytes_per_token"] == 2 * 6 * 128 * 2
    (row,) = told["fits"]
    assert {
        "card",
        "mode",
        "kv_dtype",
        "fits",
        "longest_length",
        "peak_bytes",
        "parts",
        "predicted_by",
    } <= set(row)
    words = CliRunner().invoke(app, [*arguments, "--tokens", str(row["longest_length"])])
    assert words.output.startswith(f"{SMALL}, baseline: {row['longest_length']:,} tokens fit")


@pytest.mark.parametrize(("keys", "tokens"), [({"modes": ["baseline+spec"]}, None), ({}, NEW_TOKENS)])
def test_what_cannot_be_asked_is_refused(keys: dict[str, object], tokens: int | None) -> None:
    with pytest.raises(SpecError):
        found(tokens, **keys)


def test_a_question_splits_a_text_into_prompt_and_new_tokens() -> None:
    (each,) = found()
    question = dataclasses.replace(each.question, tokens=None)
    for tokens in (1, 2, 16, 17, 1000):
        cell = question.at(tokens)
        assert cell.prompt_tokens + cell.length == max(2, tokens)
