"""A model whose config cannot be read, built or predicted costs that model alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.forecast import forecast
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.spec_error import SpecError
from orchestrator.sweep.work.estimates import Predictions
from tests.orchestrator.mutated_configs import mutated, write
from tests.workers.models.families import tiny_config
from workers.attempt import Device

GOOD = "random:pythia-160m"
DEVICE = Device(kind="NVIDIA H100", uuid="GPU-0", node="a", total_bytes=80 * 2**30)


def spec_of(*models: str, **keys: object) -> SweepSpec:
    raw = {"name": "bad", "modes": ["baseline"], "lengths": [500], "budgets": ["1GiB"]} | keys
    return parse_spec(raw | {"models": [{"target": name} for name in models]})


def with_changes(folder: Path, family: str, **changes: Any) -> str:
    return write(folder, json.dumps(tiny_config(family).to_dict() | changes, default=str))


def planned(name: str) -> str | None:
    """Why there is no prediction for `name`; None where there is one. What stands beside it is predicted either way."""
    spec = spec_of(name, GOOD)
    refuse_bad_input(spec)
    outlook = forecast(spec, "H100:80GiB")
    targets = {found.cell.model.target for found in outlook.forecasts}
    unknown = dict(outlook.unknown)
    assert GOOD in targets
    assert (name in targets) != (name in unknown)
    estimates = Predictions()
    for found in outlook.forecasts:
        assert estimates.seconds(found.cell, DEVICE) > 0
    assert "\n" not in unknown.get(name, "")
    return unknown.get(name)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"pad_token_id": 5000}, "Padding_idx must be within num_embeddings"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, more than 1,000"),
        ("llama", {"num_hidden_layers": 4_000}, "num_hidden_layers is 4,000, more than 1,000"),
        ("llama", {"num_hidden_layers": math.inf}, "num_hidden_layers is inf, more than 1,000"),
        (
            "llama",
            {"num_attention_heads": 0},
            "num_attention_heads|ZeroDivisionError|heads: the config says 0",
        ),
        ("llama", {"vocab_size": -1}, "vocab_size is -1|vocab: the config says -1|negative dimension"),
        ("llama", {"intermediate_size": 10**30}, "Overflow|10000000000000000"),
        ("llama", {"hidden_act": "none such"}, "KeyError: 'none such'"),
        ("llama", {"model_type": "none_such"}, "does not recognize this architecture"),
        ("llama", {"max_position_embeddings": -5}, "trained positions: the config says -5"),
        ("gemma3_text", {"sliding_window": -4}, "sliding window: the config says -4"),
    ],
)
def test_a_config_that_no_model_can_have_is_that_models_reason(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    found = planned(with_changes(tmp_path, family, **changes))
    assert found is not None
    assert any(words in found for words in reason.split("|")), found


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"dtype": "float64"}),
        ("llama", {"rms_norm_eps": math.nan}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": math.inf}}),
        ("gpt2", {"n_inner": None}),
    ],
)
def test_numbers_that_change_no_size_are_predicted_with(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    """Text of a config that holds Infinity or NaN is no JSON; what was read from it is a config all the same."""
    assert planned(with_changes(tmp_path, family, **changes)) is None


@pytest.mark.parametrize("text", ["{", "[]", "null", "", '{"model_type": "llama", "hidden_size": {}}'])
def test_a_file_that_is_no_config_is_that_models_reason(tmp_path: Path, text: str) -> None:
    found = planned(write(tmp_path, text))
    assert found is not None
    assert "no usable configuration" in found


def test_mutated_configs_end_in_a_prediction_or_a_reason(tmp_path: Path) -> None:
    """Each is rehearsed, which takes seconds: `python -m tests.benchmarks.families.config_fuzz` does so with 500."""
    for number, text in enumerate(mutated(10)):
        planned(write(tmp_path / str(number), text))


def test_a_budget_too_small_for_one_model_refuses_the_sweep_only_where_nothing_fits(tmp_path: Path) -> None:
    large = "random:pythia-2.8b"
    refuse_bad_input(spec_of(large, GOOD, budgets=["2GiB"]))
    refuse_bad_input(spec_of(large, budgets=["2GiB", "16GiB"]))
    refuse_bad_input(spec_of(large, budgets=["2GiB", "device"]))
    refuse_bad_input(spec_of(large, write(tmp_path, "{"), budgets=["2GiB"]))
    refuse_bad_input(spec_of(large, budgets=["6GiB"], prompt_tokens=[64, 500_000]))
    with pytest.raises(
        SpecError, match=r"budgets: 2 GiB is below what 'random:pythia-2.8b' needs .* at least 5.20 GiB"
    ):
        refuse_bad_input(spec_of(large, budgets=["1GiB", "2GiB"]))


def test_a_mode_that_an_architecture_cannot_have_is_told_by_plan(tmp_path: Path) -> None:
    """The other modes of the model, and the mode of other models, are predicted all the same."""
    recurrent = with_changes(tmp_path, "mamba2")
    raw = {"name": "a", "modes": ["baseline", "baseline+spec"], "lengths": [500]}
    models = [{"target": recurrent, "draft": recurrent}, {"target": GOOD, "draft": GOOD}]
    outlook = forecast(parse_spec(raw | {"models": models}), "H100:80GiB")
    reason = "Mamba2ForCausalLM has no speculative mode: it keeps a recurrent state, which cannot take back a rejected token"
    assert dict(outlook.unknown)[f"{recurrent}, mode baseline+spec"] == reason
    assert {f.cell.mode for f in outlook.forecasts if f.cell.model.target == GOOD} == {
        "baseline",
        "baseline+spec",
    }
