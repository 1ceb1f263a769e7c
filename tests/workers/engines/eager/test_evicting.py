"""TOVA and KeyDiff against their definitions: dense attention under a mask of what each head of each layer still keeps."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.workers.engines.eager.tiny import FAMILIES, SINKS, WINDOW, cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from tests.workers.engines.layer_by_layer import WINDOW_OF_ITS_OWN, build
from tests.workers.engines.streaming_reference import (
    _embedding,
    _expand,
    _head,
    _layer,
    _layers,
    _rotate,
    _scores,
)
from workers.engines.eager import open_session
from workers.engines.eager.policies import keydiff, tova
from workers.engines.eager.score import read
from workers.engines.session import ModeUnsupported
from workers.modes import Streaming

BUDGET = SINKS + WINDOW
TOKENS = 90
OPEN = {"tova": tova, "keydiff": keydiff}


def kept_by_tova(weights_HQC: torch.Tensor, k_CKD: torch.Tensor) -> torch.Tensor:
    return weights_HQC[:, -1].mean(0).expand(k_CKD.shape[1], -1)


def kept_by_keydiff(weights_HQC: torch.Tensor, k_CKD: torch.Tensor) -> torch.Tensor:
    k_KCD = functional.normalize(k_CKD.transpose(0, 1), dim=-1)
    return -torch.einsum("kcd,kd->kc", k_KCD, functional.normalize(k_KCD.mean(1), dim=-1))


@torch.no_grad()
def reference_logits(model, ids_T: torch.Tensor, mode: str, chunk: int) -> torch.Tensor:
    """[T, V]: nothing is ever deleted; each head remembers which positions it has not dropped."""
    score = kept_by_tova if mode == "tova" else kept_by_keydiff
    caches = [{"k": [], "v": [], "alive": None} for _ in _layers(model)]
    rows, first = [], 0
    for ids_Q in ids_T.split(chunk):
        position_Q = torch.arange(first, first + len(ids_Q))
        hidden_QE = _embedding(model)(ids_Q)
        for cache, layer in zip(caches, _layers(model), strict=True):

            def attend(q_QHD, k_QKD, v_QKD, cache=cache, position_Q=position_Q):
                cache["k"].append(_rotate(model, k_QKD, position_Q))
                cache["v"].append(v_QKD)
                k_CKD, v_CKD = torch.cat(cache["k"]), torch.cat(cache["v"])
                alive_KQ = torch.ones(k_CKD.shape[1], len(position_Q), dtype=torch.bool)
                alive_KC = alive_KQ if cache["alive"] is None else torch.cat([cache["alive"], alive_KQ], 1)
                hidden_QC = torch.arange(len(k_CKD)) > position_Q[:, None]
                heads = q_QHD.shape[1]
                seen_HQC = alive_KC.repeat_interleave(heads // len(alive_KC), 0)[:, None] & ~hidden_QC
                scores_HQC = _scores(_rotate(model, q_QHD, position_Q), k_CKD).masked_fill(
                    ~seen_HQC, -torch.inf
                )
                weights_HQC = scores_HQC.softmax(-1)
                for kv_head, alive_C in enumerate(alive_KC):
                    places = alive_C.nonzero().flatten()
                    if len(places) > BUDGET:
                        found_KN = score(weights_HQC[..., places], k_CKD[places])
                        dropped = found_KN[kv_head].topk(len(places) - BUDGET, largest=False).indices
                        alive_C[places[dropped]] = False
                cache["alive"] = alive_KC
                return torch.einsum("hqc,chd->qhd", weights_HQC, _expand(v_CKD, heads))

            hidden_QE = _layer(layer, hidden_QE, attend)
        rows.append(_head(model, hidden_QE))
        first += len(ids_Q)
    return torch.cat(rows)


def through(model, mode: str, ids_T: torch.Tensor, chunk: int) -> torch.Tensor:
    with torch.no_grad(), OPEN[mode](model, cell(mode, workload="score", chunk=chunk)) as cache:
        return torch.cat([row[0] for row in read(model, cache, ids_T[None], chunk)])


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().max() / true.abs().max())


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("mode", OPEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_keeps_what_its_definition_keeps(family: str, mode: str, chunk: int) -> None:
    model, ids_T = tiny(family, torch.float64), text(TOKENS)
    assert relative(through(model, mode, ids_T, chunk), reference_logits(model, ids_T, mode, chunk)) < 1e-6


@pytest.mark.parametrize("mode", OPEN)
def test_within_the_budget_it_is_the_full_cache_and_beyond_it_is_not(mode: str) -> None:
    model, ids_T = tiny("llama", torch.float64), text(TOKENS)
    with torch.no_grad():
        full = model(ids_T[None]).logits[0]
    found = through(model, mode, ids_T, 1)
    assert relative(found[: BUDGET + 1], full[: BUDGET + 1]) < 1e-6
    assert relative(found[BUDGET + 1 :], full[BUDGET + 1 :]) > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_models_own_attention_reads_what_tova_keeps(attention: str) -> None:
    model, ids_T = tiny("llama", attn_implementation=attention), text(TOKENS)
    model.set_attn_implementation(attention)
    session = open_session(cell("tova", workload="score"), loaded(model), None)
    assert relative(session.logits(ids_T), reference_logits(model, ids_T, "tova", 1)) < 1e-4
    before = model(ids_T[None]).logits
    assert session.in_effect().attn_implementation == attention
    assert torch.equal(model(ids_T[None]).logits, before)


@pytest.mark.parametrize("mode", OPEN)
def test_rows_of_a_batch_keep_tokens_of_their_own(mode: str) -> None:
    model = tiny("gpt_neox", torch.float64)
    ids_BT = torch.stack([text(TOKENS), text(TOKENS, seed=2)])
    with torch.no_grad(), OPEN[mode](model, cell(mode, workload="score")) as cache:
        both = torch.cat(list(read(model, cache, ids_BT, 8)), 1)
        assert {layer.keys.shape[2] for layer in cache.layers} == {BUDGET}
    for ids_T, found_TV in zip(ids_BT, both, strict=True):
        assert relative(found_TV, through(model, mode, ids_T, 8)) < 1e-9


@pytest.mark.parametrize("mode", OPEN)
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss"])
def test_layers_with_a_window_keep_what_they_keep_in_baseline(family: str, mode: str) -> None:
    """In chunks, of two sequences: within the budget nothing changes; beyond it other layers drop, each row for itself."""
    model, ids_BT = build(family), torch.stack([text(60), text(60, seed=2)])

    def found(ids_BT: torch.Tensor, budget: int) -> tuple[torch.Tensor, list[int]]:
        asked = replace(cell(mode, workload="score"), streaming=Streaming(sinks=1, window=budget - 1))
        with torch.no_grad(), OPEN[mode](model, asked) as cache:
            rows_BTV = torch.cat(list(read(model, cache, ids_BT, 7)), 1)
            return rows_BTV, [layer.keys.shape[2] for layer in cache.layers]

    with torch.no_grad():
        full_BTV = model(input_ids=ids_BT, use_cache=False).logits
    everything_BTV, _ = found(ids_BT, 100)
    assert relative(everything_BTV, full_BTV) < 1e-9
    dropped_BTV, kept = found(ids_BT, 12)
    windows = [kind == "sliding_attention" for kind in model.config.layer_types]
    assert kept == [WINDOW_OF_ITS_OWN - 1 if is_window else 12 for is_window in windows]
    assert relative(dropped_BTV, full_BTV) > 1e-2
    for row, ids_T in enumerate(ids_BT):
        assert relative(dropped_BTV[row], found(ids_T[None], 12)[0][0]) < 1e-9


@pytest.mark.parametrize("mode", OPEN)
def test_a_model_without_a_layer_that_keeps_every_token_is_refused(mode: str) -> None:
    words = "MistralForCausalLM cannot evict: none of its layers keeps every token"
    with pytest.raises(ModeUnsupported, match=words), OPEN[mode](build("mistral", windowed=True), cell(mode)):
        pass


def test_an_attention_that_tells_no_weights_is_refused_in_the_first_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    attention = type(model.model.layers[0].self_attn)

    def own(self: torch.nn.Module, hidden_states: torch.Tensor, **named: object) -> tuple[torch.Tensor, None]:
        shape_BTHD = (*hidden_states.shape[:-1], -1, self.head_dim)
        k, v = (each(hidden_states).view(shape_BTHD).transpose(1, 2) for each in (self.k_proj, self.v_proj))
        named["past_key_values"].update(k, v, self.layer_idx)
        return hidden_states, None

    monkeypatch.setattr(attention, "forward", own)
    session = open_session(cell("tova", prompt=1, length=4), loaded(model), None)
    heard = Heard()
    with pytest.raises(ModeUnsupported, match="LlamaForCausalLM cannot evict: not every layer attends"):
        session.generate(text(1)[None], 4, heard)
    assert heard.counts in ([], [0])
