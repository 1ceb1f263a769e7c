"""The plan's work grows with the cells, not with their square: counted in calls, so that no clock decides."""

import json
import sys
from pathlib import Path
from types import FrameType

import pytest

from jobs.plan_view import plan_as_json
from orchestrator import forecast as module
from orchestrator.forecast import forecast
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SweepSpec, parse_spec


def _spec(lengths: int, **keys: object) -> SweepSpec:
    return parse_spec(
        {
            "name": "t",
            "models": [{"target": "pocket", "dtype": "float32"}],
            "modes": ["baseline", "streaming"],
            "budgets": ["64MiB"],
            "lengths": f"1-{lengths}+1",
            **keys,
        }
    )


def _calls(spec: SweepSpec) -> int:
    """Function calls, built-in ones too, of everything that `oomline plan` does but print."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        refuse_bad_input(spec)
        plan_as_json(forecast(spec, "cpu"))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("keys", [{}, {"repeats": 4}], ids=["lengths", "repeats"])
def test_the_work_of_a_plan_is_linear_in_its_cells(keys: dict[str, object]) -> None:
    _calls(_spec(1))  # what is imported and read once
    few, more, most = (_calls(_spec(lengths, **keys)) for lengths in (50, 100, 200))
    assert most - more < 1.1 * 2 * (more - few)


def test_a_boundary_is_searched_once_for_all_lengths_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = module.predict_boundary

    def counted(*arguments: object) -> int | None:
        searched.append(arguments)
        return search(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "predict_boundary", counted)
    found = forecast(_spec(40, repeats=3, prompt_tokens=[16, 32]), "cpu")
    assert (found.cells, len(found.forecasts)) == (2 * 2 * 40 * 3, 2 * 2 * 40)
    assert len(searched) == 2  # of baseline, after each prompt; streaming has none
    assert {one.boundary for one in found.forecasts if one.cell.mode == "streaming"} == {None}
    assert len({one.boundary for one in found.forecasts if one.cell.mode == "baseline"}) == 2


def test_repeats_take_device_time_and_no_forecast_of_their_own() -> None:
    once, thrice = (forecast(_spec(2, repeats=repeats), "cpu") for repeats in (1, 3))
    assert len(once.forecasts) == len(thrice.forecasts)
    assert thrice.device_seconds == pytest.approx(3 * once.device_seconds)


def test_settings_of_a_cards_allocator_are_no_prediction_for_a_cpu() -> None:
    outlook = forecast(_spec(1, allocator=["default", "expandable"]), "cpu")
    assert {found.cell.allocator for found in outlook.forecasts} == {"default"}
    assert [(name, "this device is a CPU" in reason) for name, reason in outlook.unknown] == [
        ("allocator expandable", True)
    ]


@pytest.mark.usefixtures("own_answers")
def test_a_mode_that_the_engine_refuses_for_an_architecture_has_no_prediction(tmp_path: Path) -> None:
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    outlook = forecast(_spec(1, models=[{"target": f"random:{tmp_path}"}], budgets=["2GiB"]), "H100")
    assert {found.cell.mode for found in outlook.forecasts} == {"baseline"}
    [(name, reason)] = outlook.unknown
    assert name.endswith("mode streaming")
    assert "cannot stream" in reason


def test_keys_and_values_beside_a_cpu_are_told_before_a_run() -> None:
    outlook = forecast(_spec(1, kv_placement=["device", "host"]), "cpu")
    assert {found.cell.kv_placement for found in outlook.forecasts} == {"device"}
    assert "this device is a CPU" in dict(outlook.unknown)["kv_placement host"]


@pytest.mark.usefixtures("own_answers")
def test_a_dtype_that_a_mode_refuses_leaves_the_mode_its_other_dtypes() -> None:
    outlook = forecast(_spec(1, kv_dtype=["auto", "fp8"], budgets=["2GiB"]), "H100")
    assert {(found.cell.mode, found.cell.kv_dtype) for found in outlook.forecasts} == {
        ("baseline", "auto"),
        ("baseline", "fp8"),
        ("streaming", "auto"),
    }
    [(name, reason)] = outlook.unknown
    assert name == "pocket, mode streaming, kv_dtype fp8"
    assert "keeps its cache itself" in reason


def test_keys_and_values_off_the_device_are_no_prediction_for_the_graph_engine() -> None:
    keys = {"engines": ["graph"], "kv_placement": ["device", "host"], "budgets": ["2GiB"]}
    outlook = forecast(_spec(1, **keys), "H100")
    assert {found.cell.kv_placement for found in outlook.forecasts} == {"device"}
    assert {name for name, _ in outlook.unknown} == {
        f"pocket, mode {mode}, kv_placement host" for mode in ("baseline", "streaming")
    }
