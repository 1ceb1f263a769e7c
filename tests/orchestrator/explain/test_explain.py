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
from workers.modes import Speculation, Streaming
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


@pytest.mark.parametrize(
    ("at_failure", "rest"), [(None, "everything else"), (4 * GiB, "activations and workspace")]
)
def test_a_process_data_holds_its_context_once(at_failure: int | None, rest: str) -> None:
    attempt = attempt_of(
        CELL, Outcome.OOM_PREFILL, kv_cache_bytes=GiB, device=CPU, oom_allocated_bytes=at_failure
    )
    found = explain(dataclasses.replace(attempt, peak_device_bytes=4 * GiB, context_bytes=GiB))
    assert found is not None
    assert {part.name: part.bytes / GiB for part in found.parts} == {
        "KV cache": 1.0,
        rest: 2.0,
        "context": 1.0,
    }


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


def growing(
    per_token: float,
    *,
    cell: Cell = CELL,
    tokens: int = 4000,
    device_per_token: float | None = None,
    device: Device = CPU,
    reserved_per_token: float | None = None,
    base: int = GiB,
    outliers: int = 0,
) -> Attempt:
    """Along `tokens` new tokens: the cache and torch's tensors grow by `per_token`, the device by its own."""
    every = max(1, tokens // 400)
    steps = tuple(
        Step(
            token_index=index,
            t_s=float(index),
            allocated_bytes=base + int(per_token * index) + (MiB * 50 if index % 97 < outliers else 0),
            reserved_bytes=None if reserved_per_token is None else base + int(reserved_per_token * index),
            kv_cache_bytes=int(per_token * index),
        )
        for index in range(0, tokens, every)
    )
    on_device = per_token if device_per_token is None else device_per_token
    samples = tuple(
        Sample(t_s=index - 0.5, device_used_bytes=2 * GiB + int(on_device * index), process_used_bytes=None)
        for index in range(0, tokens, every)
    )
    attempt = attempt_of(cell, Outcome.OK, device=device)
    return dataclasses.replace(attempt, steps=steps, samples=samples)


def sources(attempt: Attempt, shape: ModelShape = SHAPE) -> dict[str, Reconciliation]:
    return {found.source: found for found in reconcile(attempt, shape)}


def test_growth_as_the_config_implies_in_all_three_sources() -> None:
    found = sources(growing(PER_TOKEN))
    assert set(found) == {"kv_cache", "allocated", "device"}
    for entry in found.values():
        assert entry.implied == PER_TOKEN
        assert entry.ratio == pytest.approx(1.0, abs=0.01)
        assert (entry.diagnosis, entry.agrees) == ("as the config implies", True)


def test_outliers_do_not_move_the_slope() -> None:
    entry = sources(growing(PER_TOKEN, outliers=20))["allocated"]
    assert entry.ratio == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.5, "keys (or values) are kept in float32"),
        (2.0, "the cache is kept in float32"),
        (3.0, "key and value heads are expanded 3 times before they are cached"),
        (0.4, "0.40 of what the config implies: something evicts, or a window is in effect"),
        (5.0, "5.00 times what the config implies: unexplained"),
    ],
)
def test_tell_tale_ratios(ratio: float, words: str) -> None:
    entry = sources(growing(ratio * PER_TOKEN))["kv_cache"]
    assert (entry.diagnosis, entry.agrees) == (words, False)


def test_float32_models_have_no_float32_surprise() -> None:
    cell = dataclasses.replace(CELL, model=ModelRef(target="random:x", dtype="float32"))
    entry = sources(growing(1.5 * 2 * PER_TOKEN, cell=cell))["kv_cache"]
    assert entry.diagnosis == "1.50 times what the config implies: unexplained"


STREAMED = dataclasses.replace(CELL, mode="streaming", streaming=Streaming(sinks=4, window=512))


def test_a_streaming_cache_that_grows_leaks() -> None:
    leak = sources(growing(0.5 * PER_TOKEN, cell=STREAMED))["allocated"]
    assert (leak.ratio, leak.agrees) == (None, False)
    assert leak.diagnosis == "a leak: 50% of a full cache's growth in a mode of constant memory"
    flat = sources(growing(0, cell=STREAMED))
    assert {(entry.diagnosis, entry.implied) for entry in flat.values()} == {("constant, as it should be", 0)}


SLIDING = shape_of(GQA | {"model_type": "mistral", "sliding_window": 2000})


def slid(tokens: int, cell: Cell = CELL) -> Attempt:
    """As transformers keeps a window of 2,000: at most that many tokens, the one in work among them."""
    attempt = growing(0, cell=cell, tokens=tokens)
    steps = tuple(
        dataclasses.replace(step, kv_cache_bytes=PER_TOKEN * min(cell.prompt_tokens + step.token_index, 2000))
        for step in attempt.steps
    )
    return dataclasses.replace(attempt, steps=steps)


def test_a_window_that_is_not_full_yet_grows_as_the_config_implies() -> None:
    entry = sources(slid(1500), SLIDING)["kv_cache"]
    assert (entry.implied, entry.ratio) == (PER_TOKEN, 1.0)
    assert entry.diagnosis == "as the config implies, below its window of 2,000 tokens"
    assert entry.agrees


def test_a_window_that_is_full_is_constant() -> None:
    entry = sources(slid(12_000), SLIDING)["kv_cache"]
    assert (entry.implied, entry.ratio, entry.agrees) == (0, None, True)
    assert entry.diagnosis == "constant, as its sliding windows are full"


def test_a_window_that_fills_on_the_way_is_held_against_its_own_law() -> None:
    entry = sources(slid(2600), SLIDING)["kv_cache"]
    assert entry.ratio == pytest.approx(1.0, abs=0.01)
    assert entry.diagnosis == "as the config implies"


def test_a_window_that_evicts_nothing_leaks() -> None:
    entry = sources(growing(PER_TOKEN, tokens=12_000), SLIDING)["kv_cache"]
    assert entry.diagnosis == "a leak: 100% of a full cache's growth although its windows are full"


def test_a_model_with_some_sliding_layers_grows_by_the_others() -> None:
    shape = dataclasses.replace(SHAPE, windows=(2000, None))
    entry = sources(growing(PER_TOKEN / 2, tokens=12_000), shape)["kv_cache"]
    assert (entry.implied, entry.diagnosis) == (PER_TOKEN / 2, "as the config implies")


def test_blocks_are_held_against_blocks() -> None:
    """The graph engine takes 64 tokens at a time: a run within a few blocks says nothing, a longer one is exact."""
    cell = dataclasses.replace(CELL, engine="graph")

    def blocks(tokens: int) -> Reconciliation:
        attempt = growing(0, cell=cell, tokens=tokens)
        steps = tuple(
            dataclasses.replace(step, kv_cache_bytes=PER_TOKEN * 64 * -(-(64 + step.token_index) // 64))
            for step in attempt.steps
        )
        return sources(dataclasses.replace(attempt, steps=steps))["kv_cache"]

    for tokens in (2, 20, 100, 400):
        entry = blocks(tokens)
        assert entry.diagnosis.startswith("too short to tell: ")
        assert (entry.measured, entry.implied, entry.ratio, entry.agrees) == (None, None, None, True)
    for tokens in (600, 1000, 5000):
        entry = blocks(tokens)
        assert entry.ratio == pytest.approx(1.0, abs=0.02)
        assert (entry.diagnosis, entry.agrees) == ("as the config implies", True)


@pytest.mark.parametrize("cell", [CELL, STREAMED])
@pytest.mark.parametrize("per_token", [0, PER_TOKEN / 2, PER_TOKEN, 7 * PER_TOKEN])
def test_nothing_is_said_of_a_run_of_few_tokens(cell: Cell, per_token: float) -> None:
    for tokens in (2, 5, 32):
        for entry in sources(growing(per_token, cell=cell, tokens=tokens)).values():
            assert entry.diagnosis == f"too short to tell: {tokens - 1} tokens"
            assert (entry.measured, entry.agrees) == (None, True)


def test_nothing_is_said_of_a_meter_that_moved_too_rarely() -> None:
    on_cpu = sources(growing(PER_TOKEN, tokens=1000))
    assert on_cpu["kv_cache"].diagnosis == "as the config implies"
    assert (
        on_cpu["device"].diagnosis
        == "too short to tell: 998 tokens are 998.0 KiB of a full cache, measured in steps of 256.0 KiB"
    )
    on_card = sources(growing(PER_TOKEN, tokens=12_000, device=CARD))
    assert (
        on_card["device"].diagnosis
        == "too short to tell: 11,970 tokens are 11.7 MiB of a full cache, measured in steps of 20.0 MiB"
    )


@pytest.mark.parametrize("extra", [0.25])  # one of two layers' keys beside two layers' keys and values
def test_the_copy_of_a_layer_while_it_is_made_longer_is_no_surprise(extra: float) -> None:
    entry = sources(growing(PER_TOKEN, device_per_token=(1 + extra) * PER_TOKEN))["device"]
    assert entry.ratio == pytest.approx(1.25, abs=0.01)
    assert entry.diagnosis.startswith("as the engine implies: while it makes a layer's longer keys or values")
    assert entry.agrees
    graph = dataclasses.replace(CELL, engine="graph")
    copied = sources(growing(PER_TOKEN, cell=graph, device_per_token=(1 + extra) * PER_TOKEN))["device"]
    assert copied.diagnosis == "1.25 times what the config implies: unexplained", "it copies nothing"


def test_a_draft_copies_its_layers_too() -> None:
    draft = shape_of(GQA | {"num_key_value_heads": 12})
    model = dataclasses.replace(CELL.model, draft="random:y")
    cell = dataclasses.replace(CELL, mode="baseline+spec", model=model, speculation=Speculation(gamma=4))
    both = 4 * PER_TOKEN
    for copies in (PER_TOKEN / 4, PER_TOKEN):
        attempt = growing(both, cell=cell, device_per_token=both + copies, tokens=8000)
        entry = {found.source: found for found in reconcile(attempt, SHAPE, draft)}["device"]
        assert entry.implied == both
        assert entry.agrees, entry


def test_a_device_that_grows_by_other_than_the_cache_is_told_by_what_is_known() -> None:
    kept = sources(growing(PER_TOKEN, device_per_token=1.7 * PER_TOKEN, reserved_per_token=1.7 * PER_TOKEN))
    assert (
        kept["device"].diagnosis
        == "1.70 times what the cache grew by: memory that torch freed and could not use again"
    )
    odd = sources(growing(PER_TOKEN, device_per_token=1.7 * PER_TOKEN, reserved_per_token=PER_TOKEN))
    assert odd["device"].diagnosis == "1.70 times what the config implies: unexplained"
    held = sources(growing(PER_TOKEN, device_per_token=0.3 * PER_TOKEN))
    assert (
        held["device"].diagnosis
        == "0.30 of what the cache grew by: it took memory that the process already held"
    )
    evicts = sources(growing(0.3 * PER_TOKEN))
    assert (
        evicts["device"].diagnosis
        == "0.30 of what the config implies: something evicts, or a window is in effect"
    )
    both = sources(growing(PER_TOKEN, device_per_token=2 * PER_TOKEN))
    assert (
        both["device"].diagnosis == "the cache is alive twice: concatenation copies that are not given back"
    )
    assert not any(found["device"].agrees for found in (kept, odd, held, evicts, both))


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
