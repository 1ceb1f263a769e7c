"""Exactness: streaming against the literal reference, the one-pass oracle and the full cache."""

import pytest
import torch

from tests.workers.engines.eager.tiny import FAMILIES, SINKS, WINDOW, cell, loaded, text, tiny
from tests.workers.engines.streaming_reference import oracle_logits, reference_logits
from workers.engines.eager import open_session
from workers.engines.eager.policies import ring
from workers.engines.eager.score import read

TOKENS = 120


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().max() / true.abs().max())


def chunked(model, ids_T: torch.Tensor, chunk: int) -> torch.Tensor:
    """[T, V] in the model's dtype, through the cache that a cell of this chunk size gets."""
    with torch.no_grad(), ring(model, cell("streaming", workload="score", chunk=chunk)) as cache:
        return torch.cat([row[0] for row in read(model, cache, ids_T[None], chunk)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_references_agree(family: str) -> None:
    model, ids_T = tiny(family, torch.float64), text(TOKENS)
    assert (
        relative(oracle_logits(model, ids_T, SINKS, WINDOW), reference_logits(model, ids_T, SINKS, WINDOW))
        < 1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_past_the_window_it_is_the_literal_reference(family: str, dtype: torch.dtype, bound: float) -> None:
    """One token at a time, in small chunks, in chunks that wrap the ring, and all at once."""
    model, ids_T = tiny(family, dtype), text(TOKENS)
    true = reference_logits(model, ids_T, SINKS, WINDOW)
    for chunk in (1, 7, 64, TOKENS):
        assert relative(chunked(model, ids_T, chunk), true) < bound


def test_sequential_residual_and_yarn() -> None:
    """What the families' other members do: GPT-NeoX without the parallel residual, a scaled rotation."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    for model in (
        tiny("gpt_neox", torch.float64, use_parallel_residual=False),
        tiny("llama", torch.float64, rope_parameters=yarn, num_key_value_heads=1),
    ):
        ids_T = text(80)
        assert relative(chunked(model, ids_T, 16), reference_logits(model, ids_T, SINKS, WINDOW)) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_window_it_is_the_full_cache(family: str) -> None:
    model, ids_T = tiny(family), text(60)
    full = open_session(cell("baseline", workload="score"), loaded(model), None).logits(ids_T)
    wide = open_session(cell("streaming", workload="score", window=56), loaded(model), None).logits(ids_T)
    assert relative(wide, full) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_past_the_window_it_differs_from_the_full_cache(family: str) -> None:
    model, ids_T = tiny(family), text(60)
    full = open_session(cell("baseline", workload="score"), loaded(model), None).logits(ids_T)
    narrow = open_session(cell("streaming", workload="score"), loaded(model), None).logits(ids_T)
    seen = SINKS + WINDOW + 1
    assert relative(narrow[:seen], full[:seen]) < 1e-5
    assert relative(narrow[seen:], full[seen:]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_window_has_the_same_budget_and_no_sinks(family: str) -> None:
    model, ids_T = tiny(family), text(TOKENS)
    session = open_session(cell("window", workload="score"), loaded(model), None)
    assert relative(session.logits(ids_T), reference_logits(model, ids_T, 0, SINKS + WINDOW)) < 1e-5
    assert (session.in_effect().sinks, session.in_effect().window) == (0, SINKS + WINDOW)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_streamed_is_as_it_was(family: str) -> None:
    model, ids_T = tiny(family), text(60)
    before = model(ids_T[None]).logits
    session = open_session(cell("streaming", workload="score"), loaded(model), None)
    session.logits(ids_T)
    assert torch.equal(model(ids_T[None]).logits, before)
    assert session.in_effect().attn_implementation == "streaming"
    assert model.config._attn_implementation == "sdpa"


def test_angles_hold_at_a_million_tokens() -> None:
    """Without sinks, a text that begins at position 2^20 reads as if it began at 0.

    The slots before it hold zeros, which two layers of 28 window tokens have forgotten after 56 more.
    """
    model, ids_T = tiny("llama"), text(TOKENS)
    true = reference_logits(model, ids_T, 0, 28)
    with torch.no_grad(), ring(model, cell("streaming", workload="score", sinks=0, window=28)) as cache:
        for layer in cache.layers:
            layer.seen = 2**20
        late = torch.cat([row[0] for row in read(model, cache, ids_T[None], 1)])
    assert relative(late[60:], true[60:]) < 1e-5
