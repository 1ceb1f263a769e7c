"""Streaming and full caches against references that know nothing of this engine (docs/modes.md)."""

import pytest
import torch

from tests.workers.engines.graph.tiny import FAMILIES, build, cell, tokens
from tests.workers.engines.heard import Heard
from tests.workers.engines.streaming_reference import oracle_logits, reference_logits
from workers.engines.graph import open_session
from workers.engines.session import ModeUnsupported


def gap(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_full_cache_equals_transformers(family: str) -> None:
    """Over more than two blocks, so that blocks are merged."""
    target, ids_T = build(family, torch.float64), tokens(150)[0]
    with torch.no_grad():
        expected_TV = target.model(ids_T[None]).logits[0]
    logits_TV = open_session(cell("baseline"), target, None).logits(ids_T)
    assert gap(logits_TV, expected_TV) < 1e-5  # transformers computes angles in float32


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_equals_the_literal_reference(family: str) -> None:
    ids_T = tokens(80)[0]
    target = build(family, torch.float64)
    session = open_session(cell("streaming"), target, None)
    expected_TV = reference_logits(target.model, ids_T, sinks=4, window=12)
    assert gap(session.logits(ids_T), expected_TV) < 1e-6  # handed over in float32
    single = build(family, torch.float32)
    logits_TV = open_session(cell("streaming"), single, None).logits(ids_T)
    assert gap(logits_TV, reference_logits(single.model, ids_T, sinks=4, window=12)) < 1e-5


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_float64_past_many_turns_of_the_ring(family: str) -> None:
    """Scores keep float64: the log-likelihoods agree to 1e-9 over several turns, chunk borders anywhere."""
    target, ids_T = build(family, torch.float64, layers=2), tokens(300)[0]
    expected_TV = oracle_logits(target.model, ids_T, sinks=2, window=6)
    nll = torch.nn.functional.cross_entropy(expected_TV[:-1], ids_T[1:], reduction="none")
    for chunk in (1, 37, 300):
        asked = cell("streaming", workload="score", sinks=2, window=6, prefill_chunk=chunk)
        for bucket in open_session(asked, target, None).score(ids_T, Heard()):
            expected = nll[max(bucket.position_start, 1) - 1 : bucket.position_end - 1]
            assert bucket.num_tokens == len(expected)
            assert bucket.nll_sum == pytest.approx(float(expected.sum()), rel=1e-9)


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_a_window_that_holds_everything_is_the_full_cache(family: str) -> None:
    target, ids_T = build(family, torch.float32), tokens(70)[0]
    full_TV = open_session(cell("baseline"), target, None).logits(ids_T)
    wide_TV = open_session(cell("streaming", window=66), target, None).logits(ids_T)
    assert gap(wide_TV, full_TV) < 1e-5
    narrow_TV = open_session(cell("streaming", window=12), target, None).logits(ids_T)
    assert gap(narrow_TV[:17], full_TV[:17]) < 1e-5
    assert gap(narrow_TV[17:], full_TV[17:]) > 1e-3  # the control: past the window they must differ


def test_window_mode_is_the_same_budget_without_sinks() -> None:
    target, ids_T = build("llama", torch.float64), tokens(60)[0]
    logits_TV = open_session(cell("window", sinks=4, window=12), target, None).logits(ids_T)
    assert gap(logits_TV, reference_logits(target.model, ids_T, sinks=0, window=16)) < 1e-6


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_chunked_prefill_gives_the_same_tokens(mode: str) -> None:
    target, prompt_1T = build("neox", torch.float64, layers=2), tokens(200)
    outputs = [
        open_session(cell(mode, prefill_chunk=chunk), target, None).generate(prompt_1T, 20, Heard()).ids_BT
        for chunk in (None, 1, 50)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_refusals_name_what_is_missing() -> None:
    target, draft = build("neox", torch.float32), build("llama", torch.float32)
    with pytest.raises(ModeUnsupported, match="recompute"):
        open_session(cell("recompute"), target, None)
    with pytest.raises(ModeUnsupported, match="one sequence"):
        open_session(cell("baseline+spec", batch_size=2), target, draft)
    target.model.config.hidden_act = "swish-of-tomorrow"
    with pytest.raises(ModeUnsupported, match="swish-of-tomorrow"):
        open_session(cell("baseline"), target, None)
    draft.model.config.model_type = "gemma"
    with pytest.raises(ModeUnsupported, match="gemma"):
        open_session(cell("baseline"), draft, None)
