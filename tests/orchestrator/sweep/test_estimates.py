"""Predictions as the loop asks for them, also for a model that the driver cannot read."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from orchestrator.boundary.question import questions
from orchestrator.plan import expand
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.sweep.pace import Pace
from orchestrator.sweep.work.estimates import Predictions
from tests.orchestrator.sweep.simulated import device, spec
from tests.workers.models.families import tiny_config, tiny_model
from workers.cell import ModelRef

CARD = device("card", kind="NVIDIA H100 80GB HBM3")


def test_a_known_model_is_timed_and_weighed() -> None:
    estimates = Predictions()
    short, long = (
        next(
            cell for cell in expand(spec(models=[{"target": "random:pythia-2.8b"}])) if cell.length == length
        )
        for length in (1000, 2000)
    )
    assert (
        estimates.seconds(long, CARD)
        > estimates.seconds(short, CARD)
        > estimates.step_seconds(short, CARD)
        > 0
    )
    peaks = [estimates.peak(cell, CARD) for cell in (short, long)]
    assert peaks[1].bytes - peaks[0].bytes >= 1000 * 327_680
    assert {peak.predicted_by for peak in peaks} == {"rehearsal"}


def test_a_model_that_cannot_be_read_is_run_and_searched_all_the_same() -> None:
    estimates = Predictions()
    asked = spec(
        models=[{"target": "/nowhere"}], boundary={"resolution": 32, "max_length": 4096, "confirm": 1}
    )
    cell = expand(asked)[0]
    assert estimates.seconds(cell, CARD) > 0
    assert estimates.peak(cell, CARD) is None
    question, search = estimates.start(questions(asked)[0], CARD)
    assert [probe.value for probe in search.next_probes(1)] == [32]
    draftless = dataclasses.replace(cell, model=ModelRef(target="random:pythia-14m", draft="/nowhere"))
    assert estimates.peak(draftless, CARD) is None
    assert question.max_value == 4096


def test_weights_larger_than_a_budget_are_known_beforehand(tmp_path: Path) -> None:
    estimates = Predictions()
    asked = spec(models=[{"target": "random:pythia-2.8b"}], budgets=["5GiB", "6GiB", "device"])
    told = {cell.budget: estimates.bytes_too_large(cell) for cell in expand(asked)}
    assert (told[6 * 2**30], told[None]) == (None, None)
    assert 5 * 2**30 < (told[5 * 2**30] or 0) < 6 * 2**30
    content = tiny_config("llama").to_dict() | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(content, default=str))
    quantised = spec(models=[{"target": str(tmp_path)}], budgets=[1000])
    assert estimates.bytes_too_large(expand(quantised)[0]) is None
    assert estimates.peak(expand(quantised)[0], CARD) is None


def test_quantised_weights_are_counted_as_their_files_hold_them(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    dense = spec(models=[{"target": str(tmp_path)}])
    shape = ModelShapes().weighed(expand(dense)[0]).target
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(content))
    codes = {"q": torch.zeros(1000, dtype=torch.int32), "scales": torch.zeros(10, dtype=torch.float16)}
    save_file(codes, tmp_path / "model.safetensors")
    shapes = ModelShapes()
    quantised = shapes.weighed(expand(dense)[0]).target
    assert shape is not None
    assert quantised is not None
    assert len({shape.weights_bytes(dtype) for dtype in ("float32", "bfloat16")}) == 2
    assert {quantised.weights_bytes(dtype) for dtype in ("float32", "bfloat16")} == {4020}
    (note,) = shapes.notes(expand(dense)[0].model)
    assert "counted as they are stored" in note
    tight = spec(models=[{"target": str(tmp_path)}], budgets=[4000, 5000])
    told = {cell.budget: Predictions().bytes_too_large(cell) for cell in expand(tight)}
    assert told == {4000: 4020, 5000: None}
    random = spec(models=[{"target": f"random:{tmp_path}"}])
    assert ModelShapes().weighed(expand(random)[0]).target == shape


def test_the_time_left_is_scaled_by_how_predictions_did() -> None:
    pace = Pace()
    assert pace.eta_s(100, 2) is None
    pace.note(20.0, 10.0)
    assert pace.eta_s(100, 2) == 100
    assert pace.eta_s(100, 0) is None
    assert pace.eta_s(0, 2) is None
    assert pace.linger_s(8) == 0
    assert pace.linger_s(1000) == 0.2
