"""The allocator model against a real card: events recorded on an H100 (torch 2.11, driver 580), to the out-of-memory.

LFM2-1.2B in an emulated 5 GiB, a prompt in passes of 1,024 tokens, written by `python -m tests.benchmarks.prediction`.
"""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.replay import replay
from orchestrator.predict.allocator.settings import AllocatorSettings

RECORDED = Path(__file__).parent / "recorded" / "lfm2-1.2b-h100.npz"


@pytest.mark.parametrize("allocator", ["default", "expandable"])
def test_recorded_events_reserve_what_the_card_reserved(allocator: str) -> None:
    with np.load(RECORDED) as content:
        key = f"lfm2-1.2b/baseline/{allocator}/5GiB"
        trace, real = content[f"{key}/trace"].tolist(), content[f"{key}/reserved"].tolist()
        before, allowed = int(content[f"{key}/before"][0]), int(content[f"{key}/allowed"][0])
    settings = AllocatorSettings(expandable_segments=allocator == "expandable")
    replayed = replay(trace, CachingAllocator(settings, allowed_bytes=allowed))
    assert len(real) > 60_000
    assert replayed.failure is not None
    assert replayed.failure.event == len(trace) - 1
    assert replayed.reserved.tolist()[before:] == real[before:-1]
