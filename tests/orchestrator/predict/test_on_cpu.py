"""Predictions beside real processes under real data limits: peaks, boundaries, and the search that finds
them.

The model has wide keys and values, so that a few hundred tokens weigh more than its weights.
"""

import dataclasses
import json
from collections.abc import Iterator

import pytest

from orchestrator.boundary.question import questions
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import predict
from orchestrator.predict.shape import shape_for
from orchestrator.spec import SweepSpec
from orchestrator.tables.boundary_rows import BoundaryRow, boundaries
from tests.orchestrator.boundary.searching import search
from workers.attempt import Attempt
from workers.cell import Cell, Lease, ModelRef
from workers.host.device_host import DeviceHost
from workers.modes import Speculation, Streaming
from workers.outcome import Outcome

GiB = 2**30
WIDE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def host() -> Iterator[DeviceHost]:
    host = DeviceHost("predict", cpu_total_bytes=4 * GiB)
    yield host
    host.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(WIDE))
    return f"random:{folder}"


def run(host: DeviceHost, asked: Cell) -> Attempt:
    return host.run(Lease(lease_id="l", cell=asked, attempt=1, time_limit_s=120, stall_timeout_s=60))


REAL: dict[str, dict[str, object]] = {
    "decode": {"length": 100, "batch_size": 4},
    "whole prompt": {"prompt_tokens": 700, "length": 2},
    "chunked prompt": {"prompt_tokens": 700, "length": 2, "prefill_chunk": 128},
    "one sequence": {"length": 50, "prompt_tokens": 500},
    "graph": {"length": 100, "engine": "graph", "batch_size": 4},
    "streaming": {
        "length": 4,
        "mode": "streaming",
        "streaming": Streaming(sinks=4, window=256),
        "prompt_tokens": 300,
    },
    # Loading takes more than running: no part of the run's peak.
    "converted": {"length": 4, "mode": "streaming", "streaming": Streaming(sinks=4, window=28)},
    "speculative": {
        "length": 30,
        "mode": "baseline+spec",
        "speculation": Speculation(gamma=4),
        "prompt_tokens": 500,
        "prefill_chunk": 128,
    },
}


@pytest.mark.parametrize("case", REAL)
def test_predicted_peak_of_a_real_process_within_five_percent(host: DeviceHost, wide: str, case: str) -> None:
    target = "pocket" if case == "converted" else wide
    draft = wide if case == "speculative" else None
    ref = ModelRef(target=target, draft=draft, dtype="float32")
    asked = Cell(
        model=ref,
        mode="baseline",
        engine="eager",
        purpose="probe",
        prompt_tokens=16,
        length=100,
        budget=GiB,
    )
    asked = dataclasses.replace(asked, **REAL[case])  # type: ignore[arg-type]
    attempt = run(host, asked)
    assert attempt.outcome is Outcome.OK, attempt.failure
    assert attempt.peak_device_bytes is not None
    profile = DeviceProfile.of(host.describe(), attempt.context_bytes)
    shape = shape_for(target, ref)
    prediction = predict(asked, shape, shape if draft else None, profile, loaded=True)
    assert attempt.measured.weights_bytes == prediction.weights_bytes
    assert prediction.peak_bytes == pytest.approx(attempt.peak_device_bytes, rel=0.05)


def test_a_streaming_run_takes_the_same_memory_however_long_it_is(host: DeviceHost, wide: str) -> None:
    """To the byte, but for what holds one number per token: a few KiB."""
    short = Cell(
        model=ModelRef(target=wide, dtype="float32"),
        mode="streaming",
        engine="eager",
        purpose="probe",
        prompt_tokens=16,
        length=30,
        budget=GiB,
        streaming=Streaming(sinks=4, window=28),
    )
    peaks = [run(host, dataclasses.replace(short, length=length)).peak_device_bytes for length in (30, 600)]
    assert peaks[0] == pytest.approx(peaks[1], abs=64 * 2**10)


def sweep(wide: str, **boundary: object) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "name": "t",
            "models": [{"target": wide, "dtype": "float32"}],
            "modes": ["baseline"],
            "prompt_tokens": [16],
            "batch_sizes": [4],
            "budgets": ["96MiB"],
            "boundary": {"resolution": 16, "max_length": 1000, "confirm": 1, **boundary},
        }
    )


def answer(host: DeviceHost, asked: SweepSpec) -> BoundaryRow:
    (question,) = questions(asked)
    attempts = search(question, host.describe(), lambda cell: run(host, cell))
    (row,) = boundaries(asked, attempts)
    assert row.confirmed_oom == 1
    return row


def test_a_decode_boundary_is_bracketed_and_predicted_within_five_percent(
    host: DeviceHost, wide: str
) -> None:
    """And a prompt in chunks up to there finds the same place."""
    decoded = answer(host, sweep(wide))
    assert decoded.last_ok is not None
    assert decoded.first_oom is not None
    assert decoded.first_oom - decoded.last_ok <= 16
    assert decoded.first_oom_index is not None
    assert decoded.predicted == pytest.approx(decoded.first_oom_index, rel=0.05)
    assert decoded.probes <= 2 + 4
    assert decoded.bytes_per_token == pytest.approx(decoded.analytic_bytes_per_token, rel=0.02)
    by_prompt = answer(host, sweep(wide, reach="prefill", prefill_chunk=8))
    assert by_prompt.prefill_reach
    assert by_prompt.last_ok == pytest.approx(decoded.last_ok, abs=16)
