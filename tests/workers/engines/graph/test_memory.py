"""Whole cells of this engine in processes of their own: what is reported, and real ends of memory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.host import cells
from tests.workers.host.cells import MiB
from workers.attempt import Attempt, Phase
from workers.host.device_host import DeviceHost
from workers.modes import Speculation
from workers.outcome import Outcome

PRELOAD = ("transformers.models.gpt_neox.modeling_gpt_neox", "workers.models.load", "workers.engines.graph", "workers.host.child.run")  # fmt: skip
#: Bytes that 64 tokens of one sequence take in a layer of the full cache of `cells.gpt_neox`.
LAYER = 2 * 64 * 128 * 4
PROMPT = 8


@pytest.fixture(scope="module")
def host() -> Iterator[DeviceHost]:
    host = DeviceHost("node/cpu0", 1024 * MiB, preload=PRELOAD)
    yield host
    host.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cells.gpt_neox(tmp_path_factory.mktemp("models") / "gpt-neox")


def run(host: DeviceHost, model: str, *, draft: str | None = None, **fields: object) -> Attempt:
    lease = cells.lease(model, **{"engine": "graph", "prompt_tokens": PROMPT, **fields})
    return host.run(replace(lease, cell=replace(lease.cell, model=replace(lease.cell.model, draft=draft))))


def test_growth_is_on_record(host: DeviceHost, model: str) -> None:
    attempt = run(host, model, length=300)
    assert attempt.outcome is Outcome.OK
    assert attempt.measured.kv_cache_bytes == 5 * 2 * LAYER
    assert [step.token_index for step in attempt.steps] == list(range(300))
    sizes = [step.kv_cache_bytes for step in attempt.steps]
    assert sizes == sorted(sizes)
    assert set(sizes) == {n * 2 * LAYER for n in range(1, 6)}
    times = [step.t_s for step in attempt.steps]
    assert times == sorted(times)
    measured = attempt.measured
    assert measured.ttft_s == pytest.approx(measured.prefill_s, abs=0.1)


def test_out_of_memory_while_the_cache_grows(host: DeviceHost, tmp_path: Path) -> None:
    """12 MiB of weights; 64 tokens of 32 sequences take 12 MiB, so two blocks fit and a third does not."""
    model, block = cells.gpt_neox(tmp_path, num_hidden_layers=6), 32 * 6 * LAYER
    attempt = run(host, model, length=1000, batch_size=32, budget=50 * MiB, purpose="probe")
    assert (attempt.outcome, attempt.phase) == (Outcome.OOM_DECODE, Phase.DECODE)
    last, failure = attempt.steps[-1], attempt.failure
    assert failure is not None
    assert last.kv_cache_bytes == 2 * block
    assert failure.oom_requested_bytes == block > failure.oom_free_bytes
    # The last new token was chosen by reading the last place there was; itself it has none.
    known = 2 * 64 - PROMPT + 1
    assert failure.oom_token_index == attempt.measured.new_tokens == known
    assert known - last.token_index <= 3
    assert failure.oom_allocated_bytes > 11 * MiB + 2 * block


@pytest.mark.parametrize("purpose", ["probe", "measure"])
def test_out_of_memory_while_an_oracle_is_recorded(host: DeviceHost, model: str, purpose: str) -> None:
    """The recording is the run's own output: where it ends, the run ends."""
    attempt = run(
        host, model, draft=model, length=2000, budget=30 * MiB, purpose=purpose, mode="baseline+spec",
        speculation=Speculation(gamma=4, acceptance=0.8),
    )  # fmt: skip
    assert (attempt.outcome, attempt.phase) == (Outcome.OOM_DECODE, Phase.DECODE)
    assert attempt.failure.oom_token_index == attempt.measured.new_tokens > 64


def test_out_of_memory_in_the_prompt(host: DeviceHost, model: str) -> None:
    attempt = run(host, model, prompt_tokens=6000, budget=20 * MiB)
    assert (attempt.outcome, attempt.phase) == (Outcome.OOM_PREFILL, Phase.PREFILL)
    assert attempt.failure.oom_prompt_tokens == 0


def test_a_prompt_in_chunks_tells_what_was_read(host: DeviceHost, model: str) -> None:
    """In blocks of 64 tokens: the chunk that failed ends in the first block that did not fit. With noise for
    what is not read it is the same one."""
    attempt = run(host, model, prompt_tokens=6000, budget=20 * MiB, prefill_chunk=64)
    assert (attempt.outcome, attempt.phase) == (Outcome.OOM_PREFILL, Phase.PREFILL)
    read = attempt.failure.oom_prompt_tokens
    assert read > 1000
    assert attempt.measured.kv_cache_bytes > 0
    probes = {"length": 1, "budget": 20 * MiB, "prefill_chunk": 64, "purpose": "probe"}
    for synthetic in (False, True):
        passed = run(host, model, prompt_tokens=read - 64, synthetic=synthetic, **probes)
        assert passed.outcome is Outcome.OK
    failed = run(host, model, prompt_tokens=read + 64, synthetic=True, **probes)
    assert (failed.outcome, failed.failure.oom_prompt_tokens) == (Outcome.OOM_PREFILL, read)
