"""The allocator model against a real card: events recorded on an H100 (torch 2.11, driver 580), to the out-of-memory.

Prompts in passes of 1,024 tokens, written by `python -m tests.benchmarks.prediction`: LFM2-1.2B in an emulated 5 GiB; with the
addresses of their segments SmolLM3-3B in 8 GiB and Olmo-3-7B in 20 GiB.
"""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.predict.allocator.address_space import AddressSpace
from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.replay import replay
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.device import FIRST_PASS_KERNELS

RECORDED = Path(__file__).parent / "recorded" / "lfm2-1.2b-h100.npz"
ADDRESSES = Path(__file__).parent / "recorded" / "addresses-h100.npz"


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


@pytest.mark.parametrize(
    ("run", "undisturbed"),
    [("smollm3-3b/baseline/default/8GiB", 146), ("olmo-3-7b/baseline/default/20GiB", 226)],
)
def test_segments_lie_where_the_driver_put_them(run: str, undisturbed: int) -> None:
    """In the context's room, in newer and in older mappings: of equally large free blocks the lower one is taken, so that all
    events depend on it. `undisturbed`: segments before the first host memory comes between.
    """
    with np.load(ADDRESSES) as content:
        trace, real = content[f"{run}/trace"].tolist(), content[f"{run}/reserved"].tolist()
        before, allowed = int(content[f"{run}/before"][0]), int(content[f"{run}/allowed"][0])
        kernels = {int(content[f"{run}/marks"][0]): FIRST_PASS_KERNELS}
        segments = content[f"{run}/segments"].tolist()
    space = AddressSpace()
    space.take(real[0])  # the workspace of cuBLAS
    offsets = {address - space.take(size) for _, size, address in segments[:undisturbed]}
    assert len(offsets) == 2  # in the context's room, and below all that a context maps
    replayed = replay(trace, CachingAllocator(allowed_bytes=allowed), kernels)
    assert replayed.failure is not None
    assert replayed.failure.event == len(trace) - 1
    assert replayed.reserved.tolist()[before:] == real[before:-1]
