"""Caches of latents (MLA): what they hold, to the byte; prompts in pieces; what is refused."""

from dataclasses import replace

import pytest
import torch

from orchestrator.predict import eager
from orchestrator.predict.graph import cache_bytes
from orchestrator.predict.shape import shape_of
from tests.workers.engines.eager.tiny import loaded
from tests.workers.engines.heard import Heard
from tests.workers.engines.layer_by_layer import build, cell, generates, text
from workers.engines import open_session
from workers.engines.graph.session import GraphSession
from workers.engines.session import ModeUnsupported
from workers.engines.sizes import BLOCK, LATENT_QUERIES
from workers.models.shapes import shapes


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
@pytest.mark.parametrize("mode", ["baseline", "streaming", "streaming+spec"])
def test_a_token_is_a_latent_and_its_rotated_part(family: str, mode: str) -> None:
    """For all heads together, as the fields of the config say it, and as it is foretold."""
    model = build(family, dtype=torch.float32)
    config, asked = model.config, cell(mode, "graph")
    asked = replace(asked, model=replace(asked.model, dtype="float32"))
    session = open_session(asked, loaded(model), loaded(model))
    assert isinstance(session, GraphSession)
    session.generate(text(70)[None], 10, Heard())
    assert session._execution is not None
    cache = session._execution.target.cache
    row = (config.kv_lora_rank + config.qk_rope_head_dim) * 4 * config.num_hidden_layers
    assert cache.nbytes() % row == 0
    if mode == "baseline":
        assert cache.nbytes() == 2 * BLOCK * row
    assert cache.nbytes() == cache_bytes(asked, shape_of(config), 79)


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_the_eager_engine_expands_what_it_streams(mode: str) -> None:
    """And is foretold to."""
    model, heard = build("deepseek_v2", dtype=torch.float32), Heard()
    asked = cell(mode, "eager")
    asked = replace(asked, model=replace(asked.model, dtype="float32"))
    open_session(asked, loaded(model), None).generate(text(7)[None], 40, heard)
    config = model.config
    row = config.kv_lora_rank + config.qk_rope_head_dim
    if mode == "streaming":
        row = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    assert heard.kv_bytes[-1] % (row * 4 * config.num_hidden_layers) == 0
    assert heard.kv_bytes[-1] == eager.cache_bytes(asked, shape_of(config), 46)


def test_what_transformers_expands_is_foretold() -> None:
    """14,336 bytes of each cached token of DeepSeek-V2-Lite, in one layer at a time."""
    shape = shape_of(dict(shapes()["deepseek-v2-lite"]["config"]))
    decode = eager.moments(replace(cell("baseline", "eager"), length=10_000), shape, None)[0]
    (expanded,) = (live for live in decode.work if live.what.startswith("latents expanded"))
    assert expanded.size == 14_336 * (7 + 10_000 - 1)


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_a_long_prompt_in_pieces(mode: str) -> None:
    """Longer than what is made as wide as a latent at once, and than a ring's slack; chunks give the same."""
    model, prompt_1T = build("deepseek_v2"), text(2 * LATENT_QUERIES + 9)[None]
    model.config.max_position_embeddings = 1024
    whole, in_chunks = (
        generates(model, None, mode, "graph", prompt_1T, Heard(), chunk).ids_BT for chunk in (None, 100)
    )
    assert torch.equal(whole, in_chunks)


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_latents_are_not_packed(mode: str) -> None:
    session = open_session(replace(cell(mode, "graph"), kv_dtype="int8"), loaded(build("deepseek_v2")), None)
    with pytest.raises(ModeUnsupported, match="keeps latents"):
        session.logits(text(4))
