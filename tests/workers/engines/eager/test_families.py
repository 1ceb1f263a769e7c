"""Baseline over the families that people run now, hybrids and recurrent ones included: right tokens, every byte counted."""

from collections.abc import Iterator

import pytest
import torch

from tests.workers.engines.eager.tiny import cell, loaded
from tests.workers.engines.heard import Heard
from tests.workers.models.families import VOCAB, WINDOW, tiny_model
from workers.engines.eager import open_session
from workers.engines.session import ModeUnsupported
from workers.models.cache_tensors import cache_bytes, cache_tensors

DENSE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "exaone4", "olmo3", "cohere2", "gpt_neox")
EXPERTS = ("qwen3_moe", "gpt_oss", "llama4_text", "minimax_m2", "ernie4_5_moe")
SLIDING = ("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text")
LATENT = ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash")
CONVOLUTIONS = ("lfm2", "lfm2_moe")
HYBRID = (
    "qwen3_next",
    "qwen3_5_text",
    "kimi_linear",
    "granitemoehybrid",
    "falcon_h1",
    "jamba",
    "nemotron_h",
    "zamba2",
)
OWN_CACHE = ("mamba2", "minimax", "rwkv")
ATTENTION = (*DENSE, *EXPERTS, *SLIDING, *LATENT)
PROMPT, NEW = 40, 12


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What is as small as this only waits for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text() -> torch.Tensor:
    return torch.randint(3, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", [*ATTENTION, *CONVOLUTIONS, *HYBRID, *OWN_CACHE])
def test_baseline_generates_what_transformers_does_and_counts_what_it_holds(family: str) -> None:
    """In one pass and in chunks; with a draft, where a token can be taken back, and scored: the same model throughout."""
    model, ids_T = tiny_model(family), text()
    target = loaded(model)
    true_BT = model.generate(
        ids_T[None],
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
    )[:, PROMPT:]

    def generated(mode: str = "baseline", *, chunk: int | None = None, gamma: int | None = None) -> Heard:
        heard = Heard()
        asked = cell(mode, prompt=PROMPT, length=NEW, chunk=chunk, gamma=gamma)
        found = open_session(asked, target, target if gamma else None).generate(ids_T[None], NEW, heard)
        assert torch.equal(found.ids_BT, true_BT)
        return heard

    assert generated().kv_bytes[-1] > 0
    if family in OWN_CACHE:
        with pytest.raises(ModeUnsupported, match=r"reads its prompt in one pass: leave out `prefill_chunk`"):
            generated(chunk=7)
    else:
        generated(chunk=7)
    if family in (*HYBRID, *OWN_CACHE):
        with pytest.raises(
            ModeUnsupported,
            match=r"keeps a (recurrent state|state of its own), which cannot take back a rejected token",
        ):
            generated("baseline+spec", gamma=3)
    else:
        generated("baseline+spec", gamma=3)

    dense = torch.nn.functional.cross_entropy(
        model(input_ids=ids_T[None, :-1], use_cache=False).logits[0], ids_T[1:], reduction="sum"
    )
    asked = cell(
        "baseline", workload="score", prompt=0, length=PROMPT - 1, chunk=None if family in OWN_CACHE else 9
    )
    buckets = open_session(asked, target, None).score(ids_T, Heard())
    assert sum(bucket.nll_sum for bucket in buckets) == pytest.approx(float(dense), rel=2e-5)


#: family -> bytes per token, bytes of constant state: of one sequence in float32, at the sizes of `families`.
#: Keys and values: 2 heads of 16 numbers each. A window keeps its `WINDOW - 1` newest tokens: the
#: next one makes it full.
KEYS_AND_VALUES = 2 * 2 * 16 * 4
LAW = {
    "llama": (4 * KEYS_AND_VALUES, 0),
    "gemma3_text": (2 * KEYS_AND_VALUES, 2 * (WINDOW - 1) * KEYS_AND_VALUES),
    "gemma3n_text": (
        1 * KEYS_AND_VALUES,
        2 * (WINDOW - 1) * KEYS_AND_VALUES,
    ),  # its last layer reads another's
    "gemma4_text": (
        2 * 2 * KEYS_AND_VALUES,
        2 * (WINDOW - 1) * KEYS_AND_VALUES,
    ),  # its full layers have heads of 32
    "deepseek_v3": (4 * (16 + 8) * 4, 0),
    "deepseek_v32": (4 * (16 + 8 + 16) * 4, 0),
    # (2 * key heads * 16 + value heads * 16) channels of 4 positions, and value heads * 16 * 16
    "qwen3_next": (2 * KEYS_AND_VALUES, 2 * 4 * ((2 * 2 * 16 + 4 * 16) * 4 + 4 * 16 * 16)),
    "kimi_linear": (2 * (16 + 8) * 4, 2 * 4 * (3 * 4 * 16 * 4 + 4 * 16 * 16)),
    # (heads * 16 + 2 * groups * states) channels of 4 positions, and heads * 16 * states
    "granitemoehybrid": (2 * KEYS_AND_VALUES, 2 * 4 * ((8 * 16 + 2 * 8) * 4 + 8 * 16 * 8)),
    "mamba2": (0, 4 * 4 * ((8 * 16 + 2 * 8) * 4 + 8 * 16 * 8)),
    "lfm2": (2 * KEYS_AND_VALUES, 2 * 4 * (64 * 3)),
}


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "lfm2", "deepseek_v3", "mamba2"])
def test_logits_are_those_of_the_whole_text_at_once(family: str) -> None:
    model, ids_T = tiny_model(family), text()
    rows_TV = open_session(
        cell("baseline", workload="score", prompt=0, length=PROMPT), loaded(model), None
    ).logits(ids_T)
    dense_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
    assert torch.allclose(rows_TV, dense_TV, atol=1e-5 * float(dense_TV.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", LAW)
def test_every_byte_of_every_kind_of_layer_is_counted(family: str, batch: int) -> None:
    per_token, constant = LAW[family]
    heard = Heard()
    session = open_session(
        cell("baseline", prompt=PROMPT, length=NEW, batch=batch), loaded(tiny_model(family)), None
    )
    session.generate(text().repeat(batch, 1), NEW, heard)
    read = PROMPT + NEW - 1  # the last new token is never read
    assert heard.kv_bytes[-1] == batch * (read * per_token + constant)


def test_parts_of_quantised_layers_and_of_nested_states_count_once() -> None:
    codes, scale, shared = torch.zeros(8, dtype=torch.uint8), torch.zeros(2), torch.zeros(100)

    class QuantisedLayer:
        def __init__(self) -> None:
            self._quantized_keys = (codes, {"scale": scale, "axis": 0})
            self.conv_states = {0: shared[:10], 1: None}
            self.recurrent_states = [shared[50:]]
            self.cumulative_length = torch.tensor(7)
            self.module = torch.nn.Linear(4, 4)

    assert {tensor.numel() for tensor in cache_tensors(QuantisedLayer())} == {8, 2, 10, 50}
    assert cache_bytes(QuantisedLayer()) == 8 + 2 * 4 + (10 + 50) * 4
    assert cache_bytes(QuantisedLayer(), [shared]) == 8 + 2 * 4 + 100 * 4
