"""The formulas of the memory model: their arithmetic and their boundary."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.predict.device import DeviceProfile, held
from orchestrator.predict.memory import (
    UnknownWeightsError,
    fits,
    predict,
    predict_boundary,
    smallest_budget,
)
from orchestrator.predict.shape import ModelShape, shape_for, shape_of
from workers.attempt import Device
from workers.cell import Cell, ModelRef
from workers.modes import Speculation, Streaming
from workers.rehearsal.passes import NotRehearsable

MiB, GiB = 2**20, 2**30
H100 = Device(
    kind="NVIDIA H100 80GB HBM3",
    uuid="GPU-0",
    node="n",
    total_bytes=80 * GiB,
    reserve_bytes=480 * MiB,
)
CONFIGS = Path(__file__).parent / "configs"


def published(name: str) -> ModelShape:
    return shape_of(json.loads((CONFIGS / f"{name}.json").read_text()))


def cell(mode: str = "baseline", **fields: object) -> Cell:
    streaming = None if mode.startswith("baseline") else Streaming(sinks=4, window=512)
    speculation = Speculation(gamma=4) if mode.endswith("spec") else None
    base = Cell(
        model=ModelRef(target="random:pythia-2.8b", draft="random:pythia-160m" if speculation else None),
        mode=mode,
        engine="eager",
        prompt_tokens=64,
        length=1000,
        streaming=streaming,
        speculation=speculation,
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="module")
def _no_rehearsals() -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise NotRehearsable("the formulas are asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.predict.rehearsed.answers.check", refuse)
        yield


PYTHIA = published("pythia-2.8b")
PROFILE = DeviceProfile.of(H100)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("mode", ["baseline", "baseline+spec"])
def test_the_parts_add_up_and_the_cache_is_bytes_per_token_times_tokens(mode: str, engine: str) -> None:
    draft = shape_for("random:pythia-160m", ModelRef(target=""))
    asked = cell(mode, engine=engine, prompt_tokens=512, length=10_000)
    prediction = predict(asked, PYTHIA, draft, PROFILE)
    per_token = 327_680 + (36_864 if mode.endswith("spec") else 0)
    assert prediction.bytes_per_token == per_token
    assert prediction.moment == "decode"
    assert prediction.kv_bytes == pytest.approx(10_511 * per_token, rel=64 / 10_000)
    weights = PYTHIA.weights_bytes("bfloat16")
    assert weights is not None
    assert prediction.weights_bytes >= weights
    assert sum(part.size * part.count for part in prediction.parts) == (
        prediction.kv_bytes + prediction.workspace_bytes
    )


def test_the_boundary_is_the_last_length_that_fits() -> None:
    asked = cell(budget=8 * GiB)
    boundary = predict_boundary(asked, PYTHIA, None, PROFILE)
    assert boundary is not None
    assert 3_000 < boundary < 6_000
    assert fits(dataclasses.replace(asked, length=boundary), PYTHIA, None, PROFILE)
    assert not fits(dataclasses.replace(asked, length=boundary + 1), PYTHIA, None, PROFILE)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("mode", ["streaming", "streaming+spec", "window"])
def test_constant_memory_has_no_boundary(mode: str, engine: str) -> None:
    draft = shape_for("random:pythia-160m", ModelRef(target=""))
    asked = cell(mode, engine=engine, budget=8 * GiB)
    assert predict_boundary(asked, PYTHIA, draft, PROFILE) is None
    assert predict(asked, PYTHIA, draft, PROFILE).bytes_per_token == 0
    short, long = (
        predict(dataclasses.replace(asked, length=length), PYTHIA, draft, PROFILE) for length in (600, 10**6)
    )
    assert long.kv_bytes == short.kv_bytes
    assert long.peak_bytes == short.peak_bytes


def test_a_sliding_window_bounds_full_cache_modes_too() -> None:
    mistral = published("mistral-7b")
    asked = cell(budget=24 * GiB)
    assert predict(asked, mistral, None, PROFILE).bytes_per_token == 0
    windows = tuple([None] + [4096] * 31)
    mixed = dataclasses.replace(mistral, windows=windows)
    assert predict(asked, mixed, None, PROFILE).bytes_per_token == 131_072 // 32


def test_grouped_queries_need_their_repeated_copies_only_where_a_mask_is_spelt_out() -> None:
    llama = dataclasses.replace(published("llama-2-7b"), kv_heads=8, attention="gqa")

    def repeats(**fields: object) -> bool:
        parts = predict(cell(prompt_tokens=20_000, length=1, **fields), llama, None, PROFILE).parts
        return any("repeated" in part.what for part in parts)

    assert not repeats()
    assert repeats(prefill_chunk=8192)
    assert repeats(model=ModelRef(target="random:x", attn_implementation="eager"))


def test_a_single_key_head_is_repeated_as_a_view() -> None:
    """A CPU process with 128 MiB of data read 21,376 tokens in chunks, and ran out of memory with 21,504."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4}
    config |= {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16}
    shape = shape_of(config | {"num_key_value_heads": 1, "vocab_size": 2048})
    cpu = DeviceProfile.of(Device(kind="cpu", uuid="c", node="n", total_bytes=8 * GiB))
    asked = cell(
        model=ModelRef(target="random:mqa", dtype="float32"), length=1, prefill_chunk=512, budget=128 * MiB
    )
    assert 21_376 <= (predict_boundary(asked, shape, None, cpu, "prefill_chunked") or 0) < 21_504


def test_a_prompt_in_one_pass_costs_more_than_in_chunks() -> None:
    whole = predict_boundary(cell(budget=24 * GiB), PYTHIA, None, PROFILE, "prefill")
    chunked = predict_boundary(cell(budget=24 * GiB, prefill_chunk=512), PYTHIA, None, PROFILE, "prefill")
    eager = cell(budget=24 * GiB, model=ModelRef(target="random:p", attn_implementation="eager"))
    quadratic = predict_boundary(eager, PYTHIA, None, PROFILE, "prefill")
    assert whole is not None
    assert chunked is not None
    assert quadratic is not None
    assert quadratic < whole / 3 < chunked / 3


def test_nothing_fits_below_the_smallest_budget() -> None:
    asked = cell()
    least = smallest_budget(asked, PYTHIA, None, PROFILE)
    enough, short = (dataclasses.replace(asked, budget=size) for size in (least, least - 1))
    assert predict_boundary(short, PYTHIA, None, PROFILE) == 0
    assert predict_boundary(enough, PYTHIA, None, PROFILE) != 0
    weights = PYTHIA.weights_bytes("bfloat16")
    assert weights is not None
    assert weights < least < weights + 2 * GiB


def test_unknown_weights_are_said_so() -> None:
    with pytest.raises(UnknownWeightsError, match=r"random:pythia-2\.8b"):
        predict(cell(), published("qwen-14b"), None, PROFILE)


#: Tensors above 10 MiB have their own segments, smaller ones share: an odd one of those wastes half of it.
SEGMENT = 20 * MiB


@settings(max_examples=100)
@given(
    length=st.integers(1, 300_000),
    more=st.integers(1, 1000),
    mode=st.sampled_from(["baseline", "baseline+spec", "streaming", "streaming+spec", "window"]),
    engine=st.sampled_from(["eager", "graph"]),
    batch=st.integers(1, 8),
    chunk=st.one_of(st.none(), st.integers(1, 4096)),
    prompt=st.integers(1, 5000),
)
def test_more_tokens_or_sequences_never_take_less(
    length: int, more: int, mode: str, engine: str, batch: int, chunk: int | None, prompt: int
) -> None:
    draft = shape_for("random:pythia-160m", ModelRef(target=""))
    asked = cell(
        mode, engine=engine, length=length, batch_size=batch, prefill_chunk=chunk, prompt_tokens=prompt
    )

    def peak(**fields: int) -> int:
        return predict(dataclasses.replace(asked, **fields), PYTHIA, draft, PROFILE).peak_bytes

    assert peak() <= peak(length=length + more) + SEGMENT
    assert peak() <= peak(batch_size=batch + 1) + SEGMENT


def test_how_cuda_rounds() -> None:
    """512 B in shared 2 MiB segments; up to 10 MiB in shared 20 MiB ones; above, own segments of whole 2
    MiB.
    """
    assert held([(1, 1)], PROFILE) == 2 * MiB
    assert held([(512, 4096)], PROFILE) == 2 * MiB
    assert held([(6 * MiB, 3)], PROFILE) == 20 * MiB
    assert held([(6 * MiB, 4)], PROFILE) == 40 * MiB
    assert held([(12 * MiB + 1, 2)], PROFILE) == 28 * MiB


def test_a_ring_reads_prompts_of_any_length_in_the_memory_of_one_chunk() -> None:
    def peak(prompt_tokens: int) -> int:
        asked = cell("streaming", engine="graph", prompt_tokens=prompt_tokens)
        return predict(asked, PYTHIA, None, PROFILE).peak_bytes

    assert peak(1024) < peak(2048) == peak(2049) == peak(10**6)
