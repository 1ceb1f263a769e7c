"""Predicted seconds: their order is what counts."""

import dataclasses

import pytest

from orchestrator.predict.device import DeviceProfile, bandwidth
from orchestrator.predict.duration import predict_seconds
from tests.orchestrator.predict.test_memory import H100, PROFILE, PYTHIA, cell


def seconds(**fields: object) -> float:
    return predict_seconds(cell(**fields), PYTHIA, PYTHIA, PROFILE)


def test_more_work_takes_longer() -> None:
    assert seconds(length=1000) < seconds(length=2000) < seconds(length=8000)
    assert seconds(prompt_tokens=64) < seconds(prompt_tokens=64_000)
    assert seconds(purpose="probe") < seconds(purpose="measure")
    assert seconds() < seconds(mode="baseline+spec")
    assert seconds(length=100_000, engine="graph") < seconds(length=100_000, engine="eager")
    assert seconds(length=100_000, mode="streaming") < seconds(length=100_000)


def test_no_shorter_than_the_memory_bus_allows() -> None:
    weights = PYTHIA.weights_bytes("bfloat16")
    assert weights is not None
    assert seconds(length=10_000, purpose="probe") > 10_000 * weights / PROFILE.bandwidth_bytes_per_s


@pytest.mark.parametrize(
    ("faster", "slower"),
    [("NVIDIA B200", "NVIDIA H200"), ("NVIDIA H200", "NVIDIA H100 80GB HBM3"), ("NVIDIA L4", "cpu")],
)
def test_cards_are_told_apart_by_name(faster: str, slower: str) -> None:
    assert bandwidth(faster) > bandwidth(slower)
    slow, fast = (DeviceProfile.of(dataclasses.replace(H100, kind=kind)) for kind in (slower, faster))
    asked = cell(length=10_000)
    assert predict_seconds(asked, PYTHIA, None, fast) < predict_seconds(asked, PYTHIA, None, slow)
