"""Streaming by property: which models are admitted, that they then stream exactly, and why others are refused."""

import copy
from typing import Any

import pytest
import torch

from tests.workers.engines.exact import Float64
from tests.workers.engines.heard import Heard
from tests.workers.engines.layer_by_layer import (
    END,
    WINDOWED,
    alone,
    build,
    check_full_layer,
    check_other_layer,
    generates,
    logits,
    text,
)
from tests.workers.models.families import tiny_model
from workers.engines.eager import admission, probe
from workers.engines.eager.admission import rules_of
from workers.engines.session import ModeUnsupported

#: Half-split pairs of all of a head, of a part, behind a norm; interleaved pairs; pairs behind what is not rotated (MLA);
#: layers that rotate nothing; windows; soft caps; learned sinks; experts; states beside attention; complex angles; queries
#: turned apart from keys; queries scaled by position.
ADMITTED = (
    *("llama", "qwen2", "olmo", "olmo2", "granite", "arcee", "seed_oss", "nemotron", "apertus", "exaone4"),
    *("gpt_neox", "phi", "stablelm", "glm4", "glm4_moe", "cohere", "cohere2", "helium", "ernie4_5"),
    *("qwen3", "smollm3", "olmo3", "gemma", "gemma2", "gemma3_text", "qwen3_moe", "minimax_m2", "gpt_oss"),
    *(
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "qwen3_next",
        "lfm2",
        "afmoe",
        "gemma4_text",
        "ministral3",
    ),
)


@pytest.mark.parametrize("family", [*ADMITTED, *WINDOWED])
def test_every_kind_of_layer_streams_exactly(family: str) -> None:
    model = build(family)
    with torch.no_grad(), Float64():
        rules = rules_of(model).layers
        kinds = {
            (rule and rule.window, rule and rule.rope is None): layer for layer, rule in enumerate(rules)
        }
        for layer in kinds.values():
            rule = rules[layer]
            is_full = rule is not None and rule.window is None
            (check_full_layer if is_full else check_other_layer)(alone(model, layer), "eager", 1e-9)


@pytest.mark.parametrize("family", [*ADMITTED, *WINDOWED])
def test_a_prompt_in_one_pass_is_read_as_token_by_token(family: str) -> None:
    model, prompt_T = build(family), text(7)
    with torch.no_grad(), Float64():
        found_T = generates(model, None, "streaming", "eager", prompt_T[None], Heard()).ids_BT[0]
        logits_TV = logits(model, "streaming", "eager", torch.cat([prompt_T, found_T[:-1]]))[6:]
    logits_TV[:, END] = -torch.inf  # the end of the text is put off
    assert torch.equal(logits_TV.argmax(-1), found_T)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "deepseek_v3", "cohere2"])
def test_speculation_changes_no_token(family: str) -> None:
    target, draft, prompt_1T = build(family), build(family, seed=1), text(7)[None]
    for policy in ("baseline", "streaming"):
        plain = generates(target, None, policy, "eager", prompt_1T, Heard())
        for proposing in (draft, copy.deepcopy(target)):
            found = generates(target, proposing, f"{policy}+spec", "eager", prompt_1T, Heard())
            assert torch.equal(found.ids_BT, plain.ids_BT)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mistral", "keeps constant memory already"),
        ("mamba2", "keeps constant memory already"),
        ("llama4_text", "'chunked_attention'"),
        ("falcon_h1", "'hybrid'"),
        ("jamba", "no rotary embedding"),
        ("hunyuan_v1_dense", "multiplies cos with something else"),
        ("diffllama", "in a way of its own"),
    ],
)
def test_others_are_refused_by_what_they_lack(family: str, reason: str) -> None:
    with pytest.raises(ModeUnsupported, match=reason):
        rules_of(tiny_model(family))


def llama(**changes: Any) -> Any:
    return tiny_model("llama", **changes)


def test_frequencies_that_follow_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ModeUnsupported, match="change with the length"):
        rules_of(llama(rope_parameters=rope))


def test_queries_that_change_with_the_position_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number by a factor of its own."""
    from transformers.models.ministral3 import modeling_ministral3

    def by_number(positions: torch.Tensor, *_: Any) -> torch.Tensor:
        return 1 + positions[:, None, :, None] * torch.linspace(0, 1, 16)

    monkeypatch.setattr(modeling_ministral3, "get_llama_4_attn_scale", by_number)
    with pytest.raises(ModeUnsupported, match="depend on their position beside the rotation"):
        rules_of(tiny_model("ministral3"))


def test_an_attention_that_is_no_softmax_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is that adds a bias by distance to its scores (ALiBi)."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward

    def with_bias(module: Any, q: Any, k: Any, v: Any, mask: Any, **told: Any) -> Any:
        distance = torch.arange(k.shape[2]) - torch.arange(k.shape[2])[:, None]
        return own(module, q, k, v, mask + 0.1 * distance, **told)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", with_bias)
    with pytest.raises(ModeUnsupported, match="not a softmax"):
        rules_of(llama())


def test_a_rotation_of_other_pairs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-split in one model, interleaved in another, of a part in a third."""
    for family, first, size, half_split in (
        ("llama", 0, 16, True),
        ("cohere", 0, 16, False),
        ("stablelm", 0, 4, True),
        ("deepseek_v3", 16, 8, True),
    ):
        rule = rules_of(tiny_model(family)).layers[0]
        assert rule is not None
        assert rule.rope is not None
        found = rule.rope.first, len(rule.rope.frequency_R), rule.rope.partner_R is None
        assert found == (first, size, half_split)


def test_a_model_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    rules = rules_of(model)
    monkeypatch.setattr(probe, "listen", None)
    assert rules_of(model) is rules


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_older_versions_of_transformers_tell_of_layers_is_understood(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 5.17, the oldest that is supported: one dictionary for all layers, a window in it if any layer has one."""
    model = tiny_model(family)
    now = rules_of(model).layers
    config = model.config.get_text_config(decoder=True)
    names, _ = admission.get_layer_types_and_kwargs(config)
    windowed = {"sliding_window": config.sliding_window} if "sliding_attention" in names else {}
    monkeypatch.setattr(admission, "get_layer_types_and_kwargs", lambda config: (names, windowed))
    windows = [rule and rule.window for rule in rules_of(copy.deepcopy(model)).layers]
    assert windows == [rule and rule.window for rule in now]
