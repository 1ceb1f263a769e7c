"""Shapes from configs: published bytes per token, published parameter counts, and what real caches hold."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from orchestrator.predict.caches import growth_per_token
from orchestrator.predict.shape import ModelShape, ShapeError, shape_of
from workers.cell import Cell, ModelRef

CONFIGS = Path(__file__).parent / "configs"


def published(name: str) -> ModelShape:
    return shape_of(json.loads((CONFIGS / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-2-7b", 524_288),
        ("mistral-7b", 131_072),
        ("qwen-14b", 819_200),
        ("stablelm-3b", 327_680),
        ("falcon-7b", 8_192),
        ("pythia-2.8b", 327_680),
        ("gpt2", 36_864),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bytes_per_token_of_published_models(name: str, bytes_per_token: int, dtype: str) -> None:
    assert published(name).kv_bytes_per_token(dtype) == bytes_per_token
    assert published(name).kv_bytes_per_token("float32") == 2 * bytes_per_token


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("mistral-7b", 7_241_732_096),
        ("falcon-7b", 6_921_720_704),
        ("pythia-2.8b", 2_775_208_960),
        ("stablelm-3b", 2_795_443_200),
        ("gpt2", 124_439_808),
    ],
)
def test_weights_are_counted_once(name: str, parameters: int) -> None:
    """gpt2's and falcon's output matrix is the embedding: one storage."""
    shape = published(name)
    assert shape.parameters == parameters
    weights = shape.weights_bytes("bfloat16")
    assert weights is not None
    assert 0 <= weights - 2 * parameters < 10_000  # the rotary frequencies stay float32


def test_a_window_on_every_layer_keeps_no_token_for_ever() -> None:
    shape = published("mistral-7b")
    assert set(shape.windows) == {4096}
    cell = Cell(model=ModelRef(target="mistral"), mode="baseline", engine="eager", prompt_tokens=8, length=8)
    assert growth_per_token(cell, shape) == 0
    everywhere = dataclasses.replace(shape, windows=(None, *shape.windows[1:]))
    assert growth_per_token(cell, everywhere) == 2 * 8 * 128 * 2


def test_remote_code_still_has_its_cache_arithmetic() -> None:
    shape = published("qwen-14b")
    assert shape.parameters is None
    assert shape.weights_bytes("bfloat16") is None
    assert shape.gated_mlp


def test_learned_positions_are_told_from_rotary_ones() -> None:
    assert published("gpt2").learned_positions
    assert published("gpt2").max_positions == 1024
    assert not published("pythia-2.8b").learned_positions


def test_layers_with_a_state_of_unknown_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="linear_attention"):
        shape_of(
            {
                "model_type": "unheard-of",
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "layer_types": ["linear_attention", "full_attention"],
            }
        )


def test_a_config_without_a_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="hidden size"):
        shape_of({"model_type": "unheard-of"})


TINY = {
    "gpt_neox": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
    "llama": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 128,
    },
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "multi_query": True},
    "falcon new": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
    },
    "gpt2": {"n_embd": 64, "n_head": 4},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4, "multi_query": True},
    "opt": {"hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "qwen2": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "gemma2": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "sliding_window": 8,
    },
    "deepseek_v3": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 2,
    },
}


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_what_a_real_cache_holds_is_what_the_shape_says(family: str) -> None:
    """After 20 tokens: whole layers hold 20, sliding ones their window less one."""
    config = AutoConfig.for_model(
        family.split()[0], num_hidden_layers=2, vocab_size=96, pad_token_id=0, **TINY[family]
    )
    shape = shape_of(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    cache = None
    for token in torch.randint(1, 96, (20,)):
        cache = model(token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
    tokens = [layer.keys.shape[-2] for layer in cache.layers]
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert tokens == [20 if window is None else min(20, window - 1) for window in shape.windows]
    assert numbers * 2 == sum(tokens) * (shape.key_bytes("bfloat16") + shape.value_bytes("bfloat16"))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    assert shape.weights_bytes("bfloat16") == sum(storages.values())
