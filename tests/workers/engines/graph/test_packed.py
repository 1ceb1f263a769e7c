"""Keys and values in fewer bits, in plain torch: against dense attention over what each query sees, and their bytes."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from orchestrator.spec import KvDtype
from tests.benchmarks import kv_tune
from tests.workers.engines import streaming_reference as dense
from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.graph import open_session
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels.attend_blocks import attend_blocks_plain
from workers.engines.graph.kernels.attend_packed import attend_packed_plain
from workers.engines.graph.kernels.packing import pack, quantised, unpack
from workers.engines.graph.packed_cache import PackedCache, group_of
from workers.engines.session import ModeUnsupported
from workers.kv_dtype import KV_DTYPES, STORED_AS
from workers.modes import Speculation

TOKENS = 200  # the block of the first 64 tokens is packed for those from 128 on, the next one from 192 on
FAMILIES = ("neox", "llama")


def rounded(x_TKD: torch.Tensor, over: int, name: str) -> torch.Tensor:
    """What is read of a block: by the scales of its channels (over 0: tokens) or of its tokens (over 2: channels)."""
    code, scale, zero = quantised(x_TKD.transpose(0, 1)[None], {0: 2, 2: 3}[over], STORED_AS[name])
    if name == "fp8":
        code = code.to(torch.float8_e4m3fn).to(code.dtype)
    return (code * scale + (0 if zero is None else zero))[0].transpose(0, 1)


@torch.no_grad()
def reference_logits(model, ids_T: torch.Tensor, name: str, sinks: int, window: int) -> torch.Tensor:
    """[T, V]: each token alone, dense, over keys and values of its own choice of precision."""
    keys = [[] for _ in dense._layers(model)]
    rows = []
    for t, token in enumerate(ids_T.tolist()):
        hidden = dense._embedding(model)(torch.tensor([token]))
        for cache, layer in zip(keys, dense._layers(model), strict=True):

            def attend(q, k, v, cache=cache, t=t):
                at = torch.tensor([t])
                cache.append((dense._rotate(model, k, at), v))
                k_TKD, v_TKD = (torch.cat([each[which] for each in cache]) for which in (0, 1))
                packed = max(0, t // 64 - 1) * 64
                for begin in range(0, packed, 64):
                    block = slice(begin, begin + 64)
                    own = k_TKD[:sinks].clone(), v_TKD[:sinks].clone()
                    k_TKD[block], v_TKD[block] = (
                        rounded(k_TKD[block], 0, name),
                        rounded(v_TKD[block], 2, name),
                    )
                    k_TKD[:sinks], v_TKD[:sinks] = own
                position = torch.arange(t + 1)
                near = dense._scores(dense._rotate(model, q, at), k_TKD)
                far = dense._scores(dense._rotate(model, q, at.clamp(max=sinks + window)), k_TKD)
                scores = torch.where(position < sinks, far, near)
                scores = scores.masked_fill((position >= sinks) & (t - position > window), -torch.inf)
                return torch.einsum("hqc,chd->qhd", scores.softmax(-1), dense._expand(v_TKD, q.shape[1]))

            hidden = dense._layer(layer, hidden, attend)
        rows.append(dense._head(model, hidden))
    return torch.cat(rows)


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
@pytest.mark.parametrize("name", STORED_AS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_dense_attention_over_what_a_query_sees(family: str, name: str, mode: str) -> None:
    target, ids_T = build(family, torch.float64, layers=1), tokens(TOKENS)[0]
    asked = replace(cell(mode, sinks=4, window=100), kv_dtype=name)
    sinks, window = (4, 100) if mode == "streaming" else (0, TOKENS)
    found = open_session(asked, target, None).logits(ids_T)
    expected = reference_logits(target.model, ids_T, name, sinks, window)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    exact = open_session(replace(asked, kv_dtype="auto"), target, None).logits(ids_T)
    assert torch.equal(found[:128], exact[:128]) or float((found[:128] - exact[:128]).abs().max()) < 1e-5
    assert float((found[130:] - exact[130:]).abs().max() / exact.abs().max()) > 1e-5


@pytest.mark.parametrize("name", STORED_AS)
def test_a_text_reads_alike_in_any_chunks(name: str) -> None:
    target, ids_T = build("llama", torch.float64, layers=2), tokens(TOKENS)[0]
    asked = replace(cell("baseline", workload="score", prompt_tokens=0, length=TOKENS - 1), kv_dtype=name)
    sums = [
        [
            b.nll_sum
            for b in open_session(replace(asked, prefill_chunk=chunk), target, None).score(ids_T, Heard())
        ]
        for chunk in (1, 50, 199)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=1e-9)
    assert sums[2] == pytest.approx(sums[0], rel=1e-9)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_speculation_gives_the_tokens_of_its_plain_twin(mode: str, name: str) -> None:
    """Across the tokens at which blocks are packed, with drafts that are rejected there."""
    target, draft = build("llama", torch.float64, layers=1), build("llama", torch.float64, layers=1, seed=2)
    plain = replace(cell(mode, window=100, length=160), kv_dtype=name)
    drafted = replace(plain, mode=f"{mode}+spec", speculation=Speculation(gamma=4, acceptance=0.6))
    expected = open_session(plain, target, None).generate(tokens(60), 160, Heard())
    found = open_session(drafted, target, draft).generate(tokens(60), 160, Heard())
    assert torch.equal(found.ids_BT, expected.ids_BT)


@pytest.mark.parametrize("name", STORED_AS)
def test_a_number_comes_back_within_half_a_step(name: str) -> None:
    stored = STORED_AS[name]
    k, v = torch.randn(2, 3, 64, 20), torch.randn(2, 3, 64, 20)
    k[..., 3], v[0, 0, 5] = 0, 0  # a channel and a token without a scale
    group = group_of(stored, 20, 4)
    into = torch.zeros(2, 3, group.size, dtype=torch.uint8)
    pack(k, v, stored, group, into)
    found = unpack(into, stored, group, 20, torch.float32)
    for x, back, over in ((k, found[0], 2), (v, found[1], 3)):
        span = x.abs().amax(over, keepdim=True)
        if stored.has_zeros:
            span = x.amax(over, keepdim=True) - x.amin(over, keepdim=True)
        bound = x.abs() / 16 + span / 448 if name == "fp8" else span / stored.largest * 0.501
        assert ((x - back).abs() <= bound + 1e-6).all()


def test_host_is_refused() -> None:
    target = build("neox", torch.float32, layers=1)
    with pytest.raises(ModeUnsupported, match="leave out kv_placement"):
        open_session(replace(cell("baseline"), kv_placement="host"), target, None)


def test_the_list_of_the_sweep_file_is_that_of_the_workers() -> None:
    assert get_args(KvDtype) == KV_DTYPES


@pytest.mark.parametrize("name", kv_tune.SHAPES)
def test_what_is_timed_on_a_gpu_attends_on_a_cpu(name: str) -> None:
    heads, cpu = kv_tune.SHAPES[name], torch.device("cpu")
    weights = kv_tune.weights_of(heads, cpu)
    full = FullCache(weights, 1, TOKENS + 1, 1)
    packed = PackedCache(weights, 1, TOKENS + 1, 1, STORED_AS["int8"])
    for cache, attend in ((full, attend_blocks_plain), (packed, attend_packed_plain)):
        cache.reserve(TOKENS)
        cache.fill(0, TOKENS)
        with torch.no_grad():
            kv_tune.step_of(attend, cache, heads, 1, TOKENS, cpu)()
