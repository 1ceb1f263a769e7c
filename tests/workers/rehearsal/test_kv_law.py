"""The law of a model's cache, asked of the model: the published figures, and a real cache counted."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.cache_utils import DynamicCache

from tests.benchmarks.families.check import AskedFamily
from workers.models.build import from_config
from workers.models.cache_tensors import cache_tensors
from workers.models.shapes import shapes
from workers.rehearsal.kv_law import KvLaw, kv_law
from workers.rehearsal.passes import NotRehearsable


def config(family: str, **fields: Any) -> Any:
    return AutoConfig.for_model(family, **fields)


def known(name: str) -> Any:
    fields = dict(shapes()[name]["config"])
    return config(fields.pop("model_type"), **fields)


@pytest.mark.parametrize(
    ("asked", "law"),
    [
        (known("llama-3.1-8b"), KvLaw(131_072, 0)),
        (config("deepseek_v3"), KvLaw(70_272, 0)),
        (known("gemma-3-27b"), KvLaw(81_920, 435_781_632)),
        (config("qwen3_next"), KvLaw(24_576, 77_856_768)),
    ],
    ids=["grouped keys", "MLA", "sliding windows", "gated delta rule"],
)
def test_published_shapes_take_what_their_formulas_say(asked: Any, law: KvLaw) -> None:
    assert kv_law(asked) == law


SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


@pytest.mark.parametrize(
    "asked",
    [
        config("qwen3", **SMALL, head_dim=16),
        config(
            "gemma3_text",
            **SMALL,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
        ),
        config("lfm2", **SMALL, layer_types=["conv", "conv", "full_attention", "conv"]),
        config("gpt_neox", **{**SMALL, "num_key_value_heads": 4}),
    ],
    ids=["qwen3", "gemma3", "lfm2", "gpt_neox"],
)
def test_the_law_is_what_a_real_cache_holds(asked: Any) -> None:
    law = kv_law(asked, torch.float32)
    model = from_config(asked, torch.float32).eval()
    cache = DynamicCache(config=model.config)
    ids_BT = torch.randint(0, 128, (1, 50))
    with torch.no_grad():
        for ids_BQ in ids_BT.split([49, 1], dim=1):
            model(input_ids=ids_BQ, past_key_values=cache, use_cache=True)
    assert (
        sum(tensor.nbytes for tensor in cache_tensors(cache)) == law.constant_bytes + 50 * law.bytes_per_token
    )


def test_a_config_that_is_not_complete_is_refused_in_one_line() -> None:
    with pytest.raises(NotRehearsable, match=r"^\w+Error: [^\n]+$"):
        kv_law(config("deepseek_v2"))


@pytest.mark.parametrize(
    ("family", "peculiar"),
    [
        ("xlnet", "reads a token more than was given; made on the CPU whatever the device"),
        ("cpmant", "reads the whole text each time, behind a prompt of its own"),
        ("prophetnet", "reads its positions back from the device"),
        ("xmod", "picks rows by masks"),
        ("jetmoe", "reads from the device how many tokens each expert has"),
        ("reformer", "keeps hidden states and, of longer texts, buckets"),
    ],
)
def test_peculiar_models_are_counted_exactly(family: str, peculiar: str) -> None:
    found = AskedFamily(family)
    found.loads()
    found.baseline()
    found.kv_law()
