"""Scoring: the same numbers in chunks as token by token, the right positions, and both controls."""

import pytest
import torch

from tests.workers.engines.eager.tiny import FAMILIES, SINKS, WINDOW, cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from tests.workers.engines.streaming_reference import oracle_logits
from workers.attempt import Phase
from workers.engines.eager import open_session
from workers.engines.shared.scores import bucket_of
from workers.modes import ScoreBucket

CONTEXT = SINKS + WINDOW + 1


def score(model, mode: str, ids_T: torch.Tensor, chunk: int | None = None) -> tuple[list[ScoreBucket], Heard]:
    heard = Heard()
    asked = cell(mode, workload="score", prompt=0, length=len(ids_T) - 1, chunk=chunk)
    return open_session(asked, loaded(model), None).score(ids_T, heard), heard


def nll(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> list[float]:
    """Of token t + 1 after token t, in float64."""
    return torch.nn.functional.cross_entropy(logits_TV[:-1].double(), ids_T[1:], reduction="none").tolist()


def bucketed(nll_of: dict[int, float]) -> list[ScoreBucket]:
    """From scored position to bucket."""
    starts = sorted({p - p % 128 for p in nll_of})
    members = {s: [v for p, v in nll_of.items() if p - p % 128 == s] for s in starts}
    return [
        ScoreBucket(position_start=s, position_end=s + 128, nll_sum=sum(m), num_tokens=len(m))
        for s, m in members.items()
    ]


def assert_same(found: list[ScoreBucket], true: list[ScoreBucket]) -> None:
    keys = lambda buckets: [(b.position_start, b.position_end, b.num_tokens) for b in buckets]  # noqa: E731
    assert keys(found) == keys(true)
    assert [b.nll_sum for b in found] == pytest.approx([b.nll_sum for b in true], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_score_what_single_tokens_score(family: str) -> None:
    """Streaming and window against the one-pass oracle, baseline against a dense pass."""
    model, ids_T = tiny(family), text(300)
    true = {
        "baseline": model(ids_T[None]).logits[0],
        "streaming": oracle_logits(model, ids_T, SINKS, WINDOW),
        "window": oracle_logits(model, ids_T, 0, SINKS + WINDOW),
    }
    for mode, logits_TV in true.items():
        expected = bucketed(dict(enumerate(nll(logits_TV, ids_T), start=1)))
        for chunk in (None, 1, 50):
            found, heard = score(model, mode, ids_T, chunk)
            assert_same(found, expected)
            assert heard.counts[-1] == 299
            assert heard.phases == [Phase.PREFILL, Phase.DECODE]


@pytest.mark.parametrize("family", FAMILIES)
def test_recompute_reads_each_window_from_scratch(family: str) -> None:
    model, ids_T = tiny(family), text(200)
    windows = [model(ids_T[None, max(0, t - CONTEXT) : t]).logits[0, -1] for t in range(1, len(ids_T) + 1)]
    rows_TV = torch.stack(windows)
    asked = cell("recompute", workload="score", prompt=0, length=199)
    found = open_session(asked, loaded(model), None).logits(ids_T)
    assert torch.allclose(found, rows_TV, atol=1e-5)
    buckets, heard = score(model, "recompute", ids_T)
    assert_same(buckets, bucketed(dict(enumerate(nll(rows_TV, ids_T), start=1))))
    assert heard.counts[-1] == 199


def test_policies_part_where_the_window_ends() -> None:
    """Negative control: the same NLL while everything fits, different ones after."""
    model, ids_T = tiny("gpt_neox"), text(CONTEXT + 1)
    sums = {
        mode: sum(b.nll_sum for b in score(model, mode, ids_T)[0])
        for mode in ("baseline", "streaming", "window")
    }
    assert sums["streaming"] == pytest.approx(sums["baseline"], rel=1e-5)
    assert sums["window"] == pytest.approx(sums["baseline"], rel=1e-5)
    ids_T = text(3 * CONTEXT)
    sums = {
        mode: sum(b.nll_sum for b in score(model, mode, ids_T)[0])
        for mode in ("baseline", "streaming", "window")
    }
    assert sums["streaming"] != pytest.approx(sums["baseline"], rel=1e-3)
    assert sums["window"] != pytest.approx(sums["streaming"], rel=1e-3)


def test_buckets_are_128_wide_up_to_64k_then_4096() -> None:
    assert bucket_of(0) == (0, 128)
    assert bucket_of(128) == (128, 256)
    assert bucket_of(65535) == (65408, 65536)
    assert bucket_of(65536) == (65536, 69632)
    assert bucket_of(1_000_000) == (999424, 1003520)


@pytest.mark.parametrize("mode", ["baseline", "streaming", "recompute"])
def test_a_warm_up_reads_no_more_than_it_must(mode: str) -> None:
    model = tiny("gpt_neox")
    asked = cell(mode, workload="score", prompt=0, length=1999)
    read = []
    handle = model.register_forward_pre_hook(
        lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True
    )
    open_session(asked, loaded(model), None).warm_up(text(2000)[None])
    handle.remove()
    assert 0 < sum(read) <= 256
