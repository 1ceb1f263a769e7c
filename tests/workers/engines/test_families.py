"""Every family of the table, in both engines, against transformers' own forward. A family that is added is tested here.

With one layer, keys depend on tokens alone. So what streaming reads after token t is what transformers reads when it is
given only the tokens that t sees: a reference that knows nothing of the family, nor of any cache.
"""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.workers.engines.heard import Heard
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.engines.families import FAMILIES
from workers.models.load import LoadedModel
from workers.modes import MODES, Speculation, Streaming

VOCABULARY, SINKS, WINDOW = 97, 3, 10
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "sliding_window": None,
    "pad_token_id": None,
}


def build(model_type: str, *, layers: int, seed: int = 0) -> LoadedModel:
    """In float64. Whatever of `SHAPE` the family's config knows."""
    kind = CONFIG_MAPPING[model_type]
    known = {name: value for name, value in SHAPE.items() if hasattr(kind(), name)}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**known, num_hidden_layers=layers))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return LoadedModel(
        model=model.double().eval().requires_grad_(False),
        name=model_type,
        eos_ids=frozenset({5}),
        max_positions=2048,
        vocab_size=VOCABULARY,
        weights_bytes=0,
        load_s=0.0,
        load_was_warm=None,
    )


def cell(mode: str, engine: str, *, gamma: int = 3) -> Cell:
    asked = MODES[mode]
    return Cell(
        model=ModelRef(target="tiny", draft="tiny"),
        mode=mode,
        engine=engine,  # type: ignore[arg-type]
        prompt_tokens=7,
        length=40,
        streaming=Streaming(sinks=SINKS, window=WINDOW) if asked.policy.parameters is Streaming else None,
        speculation=Speculation(gamma=gamma) if asked.decoder.parameters is Speculation else None,
    )


def text(count: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(7))


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """transformers computes angles, and some norms, in float32: up to 1e-6."""
    return float((found - expected).abs().max() / expected.abs().max())


CASES = [(family, engine) for family in FAMILIES for engine in ("eager", "graph")]


@pytest.mark.parametrize(("family", "engine"), CASES)
def test_a_full_cache_is_transformers_own_forward(family: str, engine: str) -> None:
    target, ids_T = build(family, layers=3), text(70)  # more than one block
    found = open_session(cell("baseline", engine), target, None).logits(ids_T)
    assert gap(found, target.model(ids_T[None]).logits[0]) < 1e-5


@pytest.mark.parametrize(("family", "engine"), CASES)
def test_streaming_is_a_forward_over_what_is_seen(family: str, engine: str) -> None:
    target, ids_T = build(family, layers=1), text(40)
    found = open_session(cell("streaming", engine), target, None).logits(ids_T)
    for last in range(len(ids_T)):
        window = range(max(SINKS, last - WINDOW), last + 1)
        seen = [*range(min(SINKS, last + 1)), *window]
        expected = target.model(ids_T[None, seen]).logits[0, -1]
        assert gap(found[last], expected) < 1e-5, last
    full = target.model(ids_T[None]).logits[0]
    assert gap(found[SINKS + WINDOW + 1 :], full[SINKS + WINDOW + 1 :]) > 1e-3  # else nothing was dropped


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_stream_alike_through_several_layers(family: str) -> None:
    target, ids_T = build(family, layers=3), text(60)
    eager, graph = (
        open_session(cell("streaming", engine), target, None).logits(ids_T) for engine in ("eager", "graph")
    )
    assert gap(graph, eager) < 1e-5


@pytest.mark.parametrize(("family", "engine"), CASES)
@pytest.mark.parametrize("policy", ["baseline", "streaming"])
def test_speculation_changes_no_token(family: str, engine: str, policy: str) -> None:
    target, prompt_1T = build(family, layers=2), text(7)[None]
    stranger, twin = build(family, layers=1, seed=1), build(family, layers=2)
    plain = open_session(cell(policy, engine), target, None).generate(prompt_1T, 40, Heard())
    for draft in (stranger, twin):
        found = open_session(cell(f"{policy}+spec", engine), target, draft).generate(prompt_1T, 40, Heard())
        assert torch.equal(found.ids_BT, plain.ids_BT)
        assert found.eos_at == plain.eos_at
