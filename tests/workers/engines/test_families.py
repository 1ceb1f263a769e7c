"""Every family of the graph engine against transformers' own forward, and against the eager engine. A family that is added is
tested here.
"""

from typing import Any

import pytest
import torch
from transformers import Mxfp4Config

from tests.workers.engines.exact import Float64
from tests.workers.engines.heard import Heard
from tests.workers.engines.layer_by_layer import (
    WINDOWED,
    alone,
    build,
    check_full_layer,
    check_other_layer,
    gap,
    generates,
    logits,
    text,
)
from workers.engines.families import FAMILIES
from workers.engines.graph.families import describe
from workers.engines.session import ModeUnsupported

WITH_WINDOWS = [family for family in FAMILIES if family in WINDOWED]


def whole(model: Any, ids_T: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids_T[None], use_cache=False).logits[0]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_cache_is_transformers_own_forward(family: str, dtype: torch.dtype, bound: float) -> None:
    """Over more than one block, and far past every window."""
    ids_T = text(70)
    for windowed in {False, family in WITH_WINDOWS}:
        model = build(family, dtype=dtype, windowed=windowed)
        with torch.no_grad():
            if dtype == torch.float64:
                with Float64():
                    assert gap(logits(model, "baseline", "graph", ids_T), whole(model, ids_T)) < bound
            else:
                exact = whole(build(family, windowed=windowed), ids_T)
                assert gap(logits(model, "baseline", "graph", ids_T), exact) < bound


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_layer_streams_exactly(family: str) -> None:
    model = build(family)
    with torch.no_grad(), Float64():
        layers = describe(model).layers
        kinds = {
            (layer.attention.sliding_window, layer.attention.rope): at for at, layer in enumerate(layers)
        }
        for (window, _), layer in kinds.items():
            check = check_full_layer if window is None else check_other_layer
            check(alone(model, layer), "graph", 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_stream_alike_through_several_layers(family: str) -> None:
    model, ids_T = build(family), text(60)
    with torch.no_grad(), Float64():
        eager, graph = (logits(model, "streaming", engine, ids_T) for engine in ("eager", "graph"))
    assert gap(graph, eager) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["baseline", "streaming"])
def test_speculation_changes_no_token(family: str, policy: str) -> None:
    target, stranger, prompt_1T = build(family), build(family, seed=1), text(7)[None]
    plain = generates(target, None, policy, "graph", prompt_1T, Heard())
    for draft in (stranger, target):
        found = generates(target, draft, f"{policy}+spec", "graph", prompt_1T, Heard())
        assert torch.equal(found.ids_BT, plain.ids_BT)
        assert found.eos_at == plain.eos_at


@pytest.mark.parametrize("family", WITH_WINDOWS)
def test_a_model_of_windows_alone_has_nothing_to_drop(family: str) -> None:
    with pytest.raises(ModeUnsupported, match="constant memory already"):
        logits(build(family, windowed=True), "streaming", "graph", text(7))


def test_quantised_weights_are_refused() -> None:
    model = build("gpt_oss")
    model.is_quantized = True
    model.config.quantization_config = Mxfp4Config()
    with pytest.raises(ModeUnsupported, match=r"its weights are quantised \(mxfp4\)"):
        describe(model)
