"""Predictions by rehearsal behind the functions that everything else asks, and the formulas where there is none."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import fits, largest_fitting, predict, predict_boundary
from orchestrator.predict.rehearsed import answers, store
from orchestrator.predict.shape import shape_for
from workers.attempt import Device
from workers.cell import Cell, ModelRef, Speculation, Streaming

pytestmark = pytest.mark.usefixtures("own_answers")

MiB, GiB = 2**20, 2**30
H100 = Device(
    kind="NVIDIA H100 80GB HBM3", uuid="GPU-0", node="n", total_bytes=80 * GiB, reserve_bytes=480 * MiB
)
PROFILE = DeviceProfile.of(H100)
#: Of a card: what is gone before the first weight, and the workspace of cuBLAS.
GONE = 480 * MiB + 16 * MiB + PROFILE.context_bytes + 2 * MiB
CELL = Cell(
    model=ModelRef(target="random:pythia-14m"),
    mode="baseline",
    engine="eager",
    prompt_tokens=64,
    length=100,
    budget=GONE + 96 * MiB,
)
SHAPE = shape_for("random:pythia-14m", CELL.model)


def predicted_by(cell: Cell, device: DeviceProfile = PROFILE) -> str:
    return predict(cell, SHAPE, SHAPE, device).predicted_by


def test_what_cannot_be_rehearsed_is_predicted_by_formula_and_says_so() -> None:
    cpu = DeviceProfile.of(Device(kind="cpu", uuid="c", node="n", total_bytes=8 * GiB))
    assert predicted_by(CELL) == "rehearsal"
    assert predicted_by(CELL, cpu) == "formula"
    assert predicted_by(dataclasses.replace(CELL, engine="graph")) == "formula"
    recomputed = dataclasses.replace(CELL, workload="score", mode="recompute")
    assert predicted_by(dataclasses.replace(recomputed, streaming=Streaming(sinks=4, window=60))) == "formula"


def test_a_model_that_needs_real_values_falls_back_to_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a value was read")

    monkeypatch.setattr("workers.rehearsal.eager._load", fails)
    assert predicted_by(dataclasses.replace(CELL, batch_size=5)) == "formula"


def test_the_parts_add_up() -> None:
    asked = dataclasses.replace(CELL, length=500)
    found = predict(asked, SHAPE, None, PROFILE)
    assert found.kv_bytes == pytest.approx(563 * 2 * 6 * 128 * 2, rel=0.01)
    assert sum(part.size * part.count for part in found.parts) == found.kv_bytes + found.workspace_bytes
    assert found.weights_bytes >= (SHAPE.weights_bytes("bfloat16") or 0)
    assert found.moment == "decode"
    assert found.peak_bytes <= PROFILE.capacity(CELL.budget)


@pytest.mark.parametrize("mode", ["tova", "keydiff"])
def test_a_cache_that_evicts_is_predicted_full(mode: str) -> None:
    asked = dataclasses.replace(CELL, mode=mode, streaming=Streaming(sinks=4, window=124), length=5000)
    assert predict(asked, SHAPE, None, PROFILE).kv_bytes == 128 * 2 * 6 * 128 * 2


@pytest.mark.parametrize(
    "at",
    [
        lambda value: dataclasses.replace(CELL, length=value),
        lambda value: dataclasses.replace(CELL, prompt_tokens=value, length=1, prefill_chunk=256),
        lambda value: dataclasses.replace(CELL, prompt_tokens=value + 48, length=16, prefill_chunk=256),
        lambda value: dataclasses.replace(CELL, prompt_tokens=value, length=1),
        lambda value: dataclasses.replace(CELL, batch_size=value, length=64),
        lambda value: dataclasses.replace(CELL, workload="score", length=value, prefill_chunk=256),
    ],
    ids=[
        "new tokens",
        "chunked prompt",
        "chunked prompt and its tail",
        "prompt in one pass",
        "batch",
        "score",
    ],
)
def test_a_boundary_is_where_a_cell_stops_fitting(at: Callable[[int], Cell]) -> None:
    boundary = largest_fitting(at, SHAPE, None, PROFILE)
    assert boundary is not None
    assert boundary > 10
    assert fits(at(boundary), SHAPE, None, PROFILE)
    assert not fits(at(int(boundary * 1.01) + 1), SHAPE, None, PROFILE)


def test_a_single_key_head_is_repeated_as_a_view_in_chunked_prompts(tmp_path: Path) -> None:
    """Two heads are copied for 16 query heads, 2,048 bytes a token; the cache takes 512 bytes more than that of one."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4}
    config |= {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "vocab_size": 2048}

    def boundary(kv_heads: int) -> int:
        folder = tmp_path / str(kv_heads)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": kv_heads}))
        model = ModelRef(target=f"random:{folder}")
        asked = dataclasses.replace(CELL, model=model, prefill_chunk=512, budget=GONE + 160 * MiB)
        assert predicted_by(asked) == "rehearsal"
        shape = shape_for(model.target, model)
        return predict_boundary(asked, shape, None, PROFILE, "prefill_chunked") or 0

    assert boundary(1) > 1.5 * boundary(2) > 15_000


def test_constant_memory_has_no_boundary_and_too_small_a_card_has_none_either() -> None:
    streaming = dataclasses.replace(CELL, mode="streaming", streaming=Streaming(sinks=4, window=60))
    assert predict_boundary(streaming, SHAPE, None, PROFILE) is None
    assert predict_boundary(dataclasses.replace(streaming, budget=GONE), SHAPE, None, PROFILE) == 0
    assert predict_boundary(dataclasses.replace(CELL, budget=GONE + 32 * MiB), SHAPE, None, PROFILE) == 0


def test_the_allocators_settings_move_a_boundary_and_share_the_rehearsal() -> None:
    chunked = dataclasses.replace(CELL, length=1, prefill_chunk=256)

    def boundary(allocator: str) -> int:
        def at(value: int) -> Cell:
            return dataclasses.replace(chunked, prompt_tokens=value, allocator=allocator)

        found = largest_fitting(at, SHAPE, None, PROFILE)
        assert found is not None
        return found

    assert boundary("expandable") > boundary("default")
    assert boundary("expandable_segments:True") == boundary("expandable")
    assert boundary("max_split_size_mb:200") != boundary("expandable")


def test_a_draft_and_its_cache_come_on_top() -> None:
    drafted = dataclasses.replace(
        CELL,
        mode="baseline+spec",
        model=ModelRef(target="random:pythia-14m", draft="random:pythia-14m"),
        speculation=Speculation(gamma=3),
    )
    alone, both = (predict(cell, SHAPE, SHAPE, PROFILE) for cell in (CELL, drafted))
    assert both.predicted_by == "rehearsal"
    assert both.weights_bytes == pytest.approx(2 * alone.weights_bytes, rel=0.05)
    assert both.kv_bytes == pytest.approx(2 * alone.kv_bytes, rel=0.1)


def test_an_attempts_peak_is_of_what_comes_after_loading(tmp_path: Path) -> None:
    """The output matrix of 64 MiB is there before it is tied, and gone when the first token is read."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    config |= {"num_attention_heads": 2, "vocab_size": 2**19, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelRef(target=f"random:{tmp_path}")
    asked = dataclasses.replace(CELL, model=model, prompt_tokens=4, length=2, budget=None)
    shape = shape_for(model.target, model)
    whole, run = (predict(asked, shape, None, PROFILE, loaded=loaded) for loaded in (False, True))
    assert (whole.predicted_by, whole.moment, run.moment) == ("rehearsal", "load", "decode")
    assert whole.peak_bytes - whole.rounding_bytes > run.peak_bytes - run.rounding_bytes
    assert whole.peak_bytes >= run.peak_bytes


def test_an_answer_is_found_again_by_the_content_of_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predict(CELL, SHAPE, None, PROFILE)
    assert list(tmp_path.rglob("*.json"))
    store.forget()
    monkeypatch.setattr(answers, "_peak", lambda *_: pytest.fail("asked again"))
    again = dataclasses.replace(CELL, repeat=3, seed=9)
    assert predict(again, SHAPE, None, PROFILE) == first


@pytest.mark.parametrize("spoil", ["no folder", "not a folder", "not JSON"])
def test_a_cache_that_does_not_work_costs_nothing_but_time(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predict(CELL, SHAPE, None, PROFILE)
    if spoil == "no folder":
        monkeypatch.setenv("OOMLINE_CACHE", "/proc/nowhere")
    elif spoil == "not a folder":
        monkeypatch.setenv("OOMLINE_CACHE", str(next(tmp_path.rglob("*.json"))))
    else:
        for path in tmp_path.rglob("*.json"):
            path.write_text("{")
    store.forget()
    assert predict(CELL, SHAPE, None, PROFILE) == first
