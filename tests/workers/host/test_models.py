"""Models of other kinds, and files that do not belong together, through a process of their own."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.workers.host.cells import lease
from tests.workers.models.families import tiny_config, tiny_model
from workers.attempt import Phase
from workers.cell import ModelRef, Speculation
from workers.host.device_host import DeviceHost
from workers.models.load import load_tokenizer
from workers.outcome import Outcome

POCKET = 2048  # entries of the pocket tokenizer, which stands in for the tokenizers of random models
KEYS_AND_VALUES = 2 * 2 * 16 * 4


def random(family: str, folder: Path) -> str:
    tiny_config(family, vocab_size=POCKET).save_pretrained(folder)
    return f"random:{folder}"


@pytest.mark.parametrize(
    ("family", "attention", "kv_cache_bytes"),
    [
        # Two layers of keys and values, two of delta rule; what they keep is told in the eager engine's tests.
        ("qwen3_next", "sdpa", 15 * 2 * KEYS_AND_VALUES + 12288),
        ("mamba2", "eager", 25600),
        ("granitemoehybrid", "sdpa", 15 * 2 * KEYS_AND_VALUES + 12800),  # Infinity in its config
        ("gemma2", "eager", 15 * 4 * KEYS_AND_VALUES),
    ],
)
def test_a_model_of_another_kind_runs_and_is_counted(
    host: DeviceHost, tmp_path: Path, family: str, attention: str, kv_cache_bytes: int
) -> None:
    attempt = host.run(lease(random(family, tmp_path)))
    assert attempt.outcome is Outcome.OK, attempt.failure
    assert attempt.measured.kv_cache_bytes == kv_cache_bytes
    assert attempt.measured.in_effect is not None
    assert attempt.measured.in_effect.attn_implementation == attention


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pad_token_id": 5000}, "Padding_idx must be within num_embeddings"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, more than 1,000"),
        ({"hidden_act": "none such"}, "none such"),
        ({"vocab_size": -1}, "negative dimension -1"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_load_error(
    host: DeviceHost, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    content = tiny_config("llama", vocab_size=POCKET).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(content))
    attempt = host.run(lease(f"random:{tmp_path}"))
    assert attempt.outcome is Outcome.LOAD_ERROR
    assert attempt.failure is not None
    assert reason in attempt.failure.error_message


def test_a_draft_over_recurrent_layers_is_refused_before_the_device_is_touched(
    host: DeviceHost, tmp_path: Path
) -> None:
    name = random("qwen3_next", tmp_path)
    plain = lease(name, mode="baseline+spec", speculation=Speculation(gamma=2))
    drafted = dataclasses.replace(plain.cell.model, draft=name)
    attempt = host.run(dataclasses.replace(plain, cell=dataclasses.replace(plain.cell, model=drafted)))
    assert (attempt.outcome, attempt.phase) == (Outcome.LOAD_ERROR, Phase.SPAWN)
    assert attempt.failure is not None
    assert attempt.failure.error_message == (
        "Qwen3NextForCausalLM has no speculative mode: it keeps a recurrent state, which cannot take back a rejected token"
    )
    assert attempt.context_bytes is None


def test_ids_beyond_the_embedding_are_refused_by_name(host: DeviceHost, tmp_path: Path) -> None:
    """A tokenizer that was given more tokens than the model has rows."""
    tiny_model("llama", vocab_size=POCKET).save_pretrained(tmp_path)
    tokenizer = load_tokenizer("pocket", ModelRef(target="pocket"))
    tokenizer.add_tokens([" the"])
    tokenizer.save_pretrained(tmp_path)
    attempt = host.run(lease(str(tmp_path), prompt_tokens=200))
    assert attempt.outcome is Outcome.LOAD_ERROR
    assert attempt.failure is not None
    assert attempt.failure.error_message == (
        f"{tmp_path}: its tokenizer gives ids {POCKET} of corpus builtin, its embedding has {POCKET} rows: "
        "they do not belong together"
    )


@pytest.mark.parametrize(("entries", "has_mapped"), [(100, True), (POCKET, False)])
def test_a_vocabulary_smaller_than_the_stand_in_tokenizers_is_no_error(
    host: DeviceHost, tmp_path: Path, entries: int, has_mapped: bool
) -> None:
    tiny_config("llama", vocab_size=entries).save_pretrained(tmp_path)
    attempt = host.run(lease(f"random:{tmp_path}", prompt_tokens=200))
    assert attempt.outcome is Outcome.OK, attempt.failure
    assert (attempt.measured.ids_mapped is not None) == has_mapped
    assert attempt.measured.ids_mapped is None or 0 < attempt.measured.ids_mapped <= 200


@pytest.mark.parametrize("eos", [-1, POCKET + 5, [2, POCKET + 5], None])
def test_an_end_of_text_outside_the_vocabulary_cannot_occur(
    host: DeviceHost, tmp_path: Path, eos: object
) -> None:
    model = tiny_model("llama", vocab_size=POCKET)
    model.save_pretrained(tmp_path)
    load_tokenizer("pocket", ModelRef(target="pocket")).save_pretrained(tmp_path)
    for file in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(content | {"eos_token_id": eos}))
    attempt = host.run(lease(str(tmp_path)))
    assert attempt.outcome is Outcome.OK, attempt.failure
    assert attempt.measured.eos_at is None
