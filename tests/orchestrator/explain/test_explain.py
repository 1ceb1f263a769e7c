"""Explanations of an out-of-memory, and growth beside what the config implies."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.explain.breakdown import allocator_moves, explain
from orchestrator.explain.devices import devices_needed
from orchestrator.explain.reconcile import Reconciliation, reconcile
from orchestrator.explain.slope import theil_sen
from orchestrator.predict.shape import ModelShape, shape_of
from tests.orchestrator.boundary.attempts import CPU, attempt_of
from workers.attempt import Attempt, Device, Sample, Step
from workers.cell import Cell, ModelRef
from workers.modes import Streaming
from workers.outcome import Outcome

GiB, MiB = 2**30, 2**20
CARD = Device(kind="NVIDIA L4", uuid="GPU-0", node="n", total_bytes=24 * GiB, reserve_bytes=GiB // 2)
CELL = Cell(
    model=ModelRef(target="random:x", dtype="bfloat16"),
    mode="baseline",
    engine="eager",
    prompt_tokens=64,
    length=8000,
    budget=8 * GiB,
)
GQA = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 64,
}
SHAPE = shape_of(GQA)
PER_TOKEN = 2 * 2 * 4 * 32 * 2  # layers x (K, V) x heads x size x bf16


def oom() -> Attempt:
    attempt = attempt_of(
        CELL,
        Outcome.OOM_DECODE,
        index=4321,
        kv_cache_bytes=2 * GiB,
        device=CARD,
        oom_requested_bytes=24 * MiB,
        oom_free_bytes=10 * MiB,
        oom_allocated_bytes=6 * GiB,
        oom_reserved_bytes=7 * GiB,
    )
    measured = dataclasses.replace(attempt.measured, weights_bytes=int(3.5 * GiB), num_alloc_retries=3)
    return dataclasses.replace(attempt, measured=measured, context_bytes=GiB // 2)


def test_the_parts_of_a_full_card() -> None:
    found = explain(oom())
    assert found is not None
    assert {part.name: part.bytes / GiB for part in found.parts} == {
        "weights": 3.5,
        "KV cache": 2.0,
        "activations and workspace": 0.5,
        "allocator: cached, but free": 1.0,
        "context": 0.5,
        "driver's reserve": 0.5,
    }
    assert sum(part.of_budget for part in found.parts) == pytest.approx(1.0)
    assert (found.token_index, found.alloc_retries, found.budget_bytes) == (4321, 3, 8 * GiB)
    assert "new token 4,321" in found.reading
    assert "weights took 44% of the 8.00 GiB" in found.reading
    assert "12% was fragmentation" in found.reading
    assert "request of 24.0 MiB with 10.0 MiB free" in found.reading


def test_a_process_without_an_allocator_of_its_own() -> None:
    attempt = dataclasses.replace(
        attempt_of(CELL, Outcome.OOM_PREFILL, kv_cache_bytes=GiB, device=CPU), peak_device_bytes=4 * GiB
    )
    found = explain(attempt)
    assert found is not None
    assert {part.name: part.bytes / GiB for part in found.parts} == {"KV cache": 1.0, "everything else": 3.0}
    assert "in the prompt" in found.reading


def test_the_cache_is_read_from_the_last_step_where_the_failure_did_not_count_it() -> None:
    step = Step(token_index=1, t_s=1.0, allocated_bytes=None, reserved_bytes=None, kv_cache_bytes=GiB)
    found = explain(attempt_of(CELL, Outcome.OOM_DECODE, index=5, device=CARD, steps=(step,)))
    assert found is not None
    assert found.parts[0].bytes == GiB


def test_only_device_memory_is_explained() -> None:
    assert explain(attempt_of(CELL, Outcome.OK)) is None
    assert explain(attempt_of(CELL, Outcome.OOM_HOST)) is None
    assert explain(attempt_of(CELL, Outcome.OOM_DECODE, device=None)) is None


def test_what_the_allocator_moves() -> None:
    assert allocator_moves(4000, 4200).endswith("from 4,000 to 4,200")
    assert "leaves" in allocator_moves(4000, 4000)


# Reconciliation


def growing(per_token: float, *, cell: Cell = CELL, base: int = GiB, outliers: int = 0) -> Attempt:
    steps = tuple(
        Step(
            token_index=index,
            t_s=float(index),
            allocated_bytes=base + int(per_token * index) + (MiB * 50 if index % 97 < outliers else 0),
            reserved_bytes=None,
            kv_cache_bytes=int(per_token * index),
        )
        for index in range(0, 4000, 10)
    )
    samples = tuple(
        Sample(t_s=t + 0.5, device_used_bytes=2 * GiB + int(per_token * t), process_used_bytes=None)
        for t in range(0, 4000, 3)
    )
    return dataclasses.replace(attempt_of(cell, Outcome.OK), steps=steps, samples=samples)


def sources(attempt: Attempt, shape: ModelShape = SHAPE) -> dict[str, Reconciliation]:
    return {found.source: found for found in reconcile(attempt, shape)}


def test_growth_as_the_config_implies_in_all_three_sources() -> None:
    found = sources(growing(PER_TOKEN))
    assert set(found) == {"kv_cache", "allocated", "device"}
    for entry in found.values():
        assert entry.analytic == PER_TOKEN
        assert entry.ratio == pytest.approx(1.0, abs=0.01)
        assert entry.agrees


def test_outliers_do_not_move_the_slope() -> None:
    entry = sources(growing(PER_TOKEN, outliers=20))["allocated"]
    assert entry.ratio == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.5, "float32"),
        (2.0, "the cache is kept in float32"),
        (3.0, "expanded 3 times"),
        (0.4, "evicts"),
        (5.0, "unexplained"),
    ],
)
def test_tell_tale_ratios(ratio: float, words: str) -> None:
    entry = sources(growing(ratio * PER_TOKEN))["kv_cache"]
    assert not entry.agrees
    assert words in entry.diagnosis


def test_float32_models_have_no_float32_surprise() -> None:
    cell = dataclasses.replace(CELL, model=ModelRef(target="random:x", dtype="float32"))
    entry = sources(growing(1.5 * 2 * PER_TOKEN, cell=cell))["kv_cache"]
    assert "unexplained" in entry.diagnosis


def test_a_streaming_cache_that_grows_leaks() -> None:
    cell = dataclasses.replace(CELL, mode="streaming", streaming=Streaming(sinks=4, window=512))
    leak = sources(growing(0.5 * PER_TOKEN, cell=cell))["allocated"]
    assert (leak.ratio, leak.agrees) == (None, False)
    assert "a leak: 50%" in leak.diagnosis
    flat = sources(growing(0, cell=cell))
    assert all(entry.agrees for entry in flat.values())


def test_an_attempt_without_steps_reconciles_nothing() -> None:
    assert reconcile(attempt_of(CELL, Outcome.OK), SHAPE) == []


@given(
    slope=st.integers(-1000, 1000),
    xs=st.lists(st.integers(0, 10_000), min_size=4, max_size=60, unique=True),
    wrong=st.data(),
)
def test_a_quarter_of_wild_points_leaves_the_slope_alone(
    slope: int, xs: list[int], wrong: st.DataObject
) -> None:
    wild = set(wrong.draw(st.lists(st.sampled_from(xs), max_size=len(xs) // 5, unique=True)))
    points = [(float(x), slope * x + (10**9 if x in wild else 0)) for x in xs]
    assert theil_sen(points) == pytest.approx(slope, abs=1e-6)


def test_no_slope_without_two_places() -> None:
    assert theil_sen([]) is None
    assert theil_sen([(1.0, 2.0), (1.0, 3.0)]) is None


def test_devices_needed_bear_a_context_and_a_reserve_each() -> None:
    """The prediction has one context in it, and no reserve (GiB)."""
    assert devices_needed(76, 80, reserve_bytes=6, context_bytes=7) == 2  # 69 in rooms of 67
    assert devices_needed(140, 80, reserve_bytes=1, context_bytes=1) == 2
    assert devices_needed(10, 80, reserve_bytes=60, context_bytes=30) is None
