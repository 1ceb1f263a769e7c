"""GGUF files say more than transformers reads of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.workers.models.folders import save_gguf
from workers.cell import ModelRef
from workers.models.load import LoadedModel, LoadError, load_model

IDS_BT = torch.randint(3, 300, (1, 60), generator=torch.Generator().manual_seed(1))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def load(path: Path) -> LoadedModel:
    return load_model(str(path), ModelRef(target=str(path), dtype="float32"), torch.device("cpu"))


def linear(writer: Any) -> None:
    writer.add_rope_scaling_type(rope_scaling("linear"))
    writer.add_rope_scaling_factor(4.0)


def legacy_linear(writer: Any) -> None:
    writer.add_float32("llama.rope.scale_linear", 4.0)


def yarn(writer: Any) -> None:
    writer.add_rope_scaling_type(rope_scaling("yarn"))
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def llama3(writer: Any) -> None:
    """As the converters write it: what each frequency is divided by."""
    config = LlamaForCausalLM.config_class(
        hidden_size=64, num_attention_heads=4, rope_parameters=LLAMA3 | {"rope_theta": 1e4}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1e4 ** -(torch.arange(8) / 8)
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


def rope_scaling(name: str) -> Any:
    import gguf

    return gguf.RopeScalingType(name)


@pytest.mark.parametrize(
    ("extend", "scaling"),
    [
        (linear, {"rope_type": "linear", "factor": 4.0}),
        (legacy_linear, {"rope_type": "linear", "factor": 4.0}),
        (yarn, YARN),
        (llama3, LLAMA3),
    ],
)
def test_rotary_scaling_is_read(
    tmp_path: Path, extend: Callable[[Any], None], scaling: dict[str, Any]
) -> None:
    """The logits are those of the same weights under that scaling, and not those without it."""
    found = load(save_gguf(tmp_path / "scaled.gguf", extend=extend)).model
    plain = load(save_gguf(tmp_path / "plain.gguf")).model
    config = plain.config.to_dict()
    config["rope_parameters"] = config["rope_parameters"] | scaling
    true = LlamaForCausalLM(LlamaForCausalLM.config_class(**config)).eval()
    true.load_state_dict(plain.state_dict())
    with torch.no_grad():
        logits, expected = (m(input_ids=IDS_BT).logits for m in (found, true))
    assert torch.allclose(logits, expected, atol=1e-6)
    frequencies = [m.model.rotary_emb.inv_freq for m in (found, true, plain)]
    assert torch.allclose(frequencies[0], frequencies[1])
    assert not torch.allclose(frequencies[0], frequencies[2], rtol=0.1)


@pytest.mark.parametrize(
    ("extend", "said"),
    [
        (lambda writer: writer.add_rope_scaling_type(rope_scaling("longrope")), "rope.scaling.type longrope"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(8, 3.0, np.float32)), "tensor rope_freqs.weight"),
        (lambda writer: writer.add_tensor("rope_factors_long.weight", np.ones(8, np.float32)), "tensor rope_factors_long"),
        (lambda writer: writer.add_logit_scale(0.5), "logit_scale"),
        (lambda writer: writer.add_attn_logit_softcapping(50.0), "attn_logit_softcapping"),
        (lambda writer: writer.add_expert_weights_scale(2.5), "expert_weights_scale"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, extend: Callable[[Any], None], said: str
) -> None:
    with pytest.raises(
        LoadError, match="its tokens would be others; use the same model in safetensors"
    ) as raised:
        load(save_gguf(tmp_path / "model.gguf", extend=extend))
    assert said in str(raised.value)


def test_what_changes_nothing_is_no_reason(tmp_path: Path) -> None:
    def extend(writer: Any) -> None:
        writer.add_rope_scaling_type(rope_scaling("none"))
        writer.add_key_length(16)
        writer.add_value_length(16)
        writer.add_causal_attention(True)
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))

    assert load(save_gguf(tmp_path / "model.gguf", extend=extend)).vocab_size == 300
