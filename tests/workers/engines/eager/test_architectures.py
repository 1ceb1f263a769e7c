"""Which architectures may do what: baseline and recompute all of them; what cannot stream is told why."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    MptConfig,
    PhiConfig,
    PreTrainedConfig,
)

from tests.workers.engines.eager.tiny import VOCAB, cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from workers.engines.eager import open_session
from workers.engines.session import ModeUnsupported

SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "mpt": MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4),
    "mistral": MistralConfig(**SHAPE, intermediate_size=64, num_key_value_heads=2, sliding_window=16),
    "phi": PhiConfig(**SHAPE, intermediate_size=64),
    "mamba": MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def build(config: PreTrainedConfig):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", OTHERS)
def test_baseline_generates_with_every_causal_model(name: str) -> None:
    """Against transformers' own greedy generate with a cache of its own."""
    model = build(OTHERS[name])
    prompt_BT = text(20)[None]
    true_BT = model.generate(prompt_BT, do_sample=False, max_new_tokens=30, eos_token_id=None, pad_token_id=0)
    found = open_session(cell("baseline", prompt=20, length=30), loaded(model), None).generate(
        prompt_BT, 30, Heard()
    )
    assert torch.equal(found.ids_BT, true_BT[:, 20:])


@pytest.mark.parametrize("name", OTHERS)
def test_baseline_and_recompute_score_with_every_causal_model(name: str) -> None:
    """In chunks of 128 where there is a cache; a window of 100 tokens recomputed is the text itself."""
    model, ids_T = build(OTHERS[name]), text(100)
    dense = torch.nn.functional.cross_entropy(model(ids_T[None, :-1]).logits[0], ids_T[1:], reduction="sum")
    for mode, chunk in (("baseline", None), ("baseline", 30), ("recompute", None)):
        if chunk and name == "mamba":
            continue
        asked = cell(mode, workload="score", prompt=0, length=99, chunk=chunk, window=100)
        buckets = open_session(asked, loaded(model), None).score(ids_T, Heard())
        assert sum(b.nll_sum for b in buckets) == pytest.approx(float(dense), rel=1e-5)


@pytest.mark.parametrize("mode", ["streaming", "window"])
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gpt2", "GPT2LMHeadModel cannot stream: it has no rotary embedding"),
        ("bloom", "BloomForCausalLM cannot stream: it has no rotary embedding"),
        ("mpt", "MptForCausalLM cannot stream: it has no rotary embedding"),
        ("mistral", "MistralForCausalLM cannot stream: each of its layers keeps constant memory already"),
    ],
)
def test_streaming_says_what_an_architecture_lacks(name: str, missing: str, mode: str) -> None:
    with pytest.raises(ModeUnsupported, match=missing):
        open_session(cell(mode), loaded(build(OTHERS[name])), None)


def test_a_rotation_that_changes_with_the_length_cannot_stream() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny("llama", rope_parameters=dynamic)
    with pytest.raises(ModeUnsupported, match=r"its frequencies change with the length of the text"):
        open_session(cell("streaming"), loaded(model), None)
    open_session(cell("baseline"), loaded(model), None)


def test_what_assisted_decoding_cannot_do_is_said_before_it_starts() -> None:
    model = tiny("gpt_neox")
    with pytest.raises(ModeUnsupported, match="not a batch of 2"):
        open_session(cell("baseline+spec", gamma=2, batch=2), loaded(model), loaded(model))
    other = tiny("gpt_neox", vocab_size=VOCAB + 3)
    with pytest.raises(ModeUnsupported, match=r"draft's vocabulary \(100\) differs from the target's \(97\)"):
        open_session(cell("baseline+spec", gamma=2), loaded(model), loaded(other))
    with pytest.raises(ModeUnsupported, match="GPT2LMHeadModel cannot stream"):
        open_session(cell("streaming+spec", gamma=2), loaded(model), loaded(build(OTHERS["gpt2"])))
    mamba = build(OTHERS["mamba"])
    with pytest.raises(ModeUnsupported, match="cannot take back a rejected token"):
        open_session(cell("baseline+spec", gamma=2), loaded(mamba), loaded(mamba))
    with pytest.raises(ModeUnsupported, match="reads its prompt in one pass"):
        open_session(cell("baseline", chunk=8), loaded(mamba), None)
    with pytest.raises(ModeUnsupported, match="it generates none"):
        open_session(cell("recompute"), loaded(model), None).generate(text(5)[None], 5, Heard())
