"""A model whose layers have windows of their own, as the checks of a run see it."""

import pytest

from tests.workers.engines import layer_by_layer
from tests.workers.engines.eager.tiny import loaded
from workers.engines import open_session
from workers.modes import BASELINE


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma3_text"])
def test_windows_of_its_own_are_no_setting_of_the_mode(family: str) -> None:
    model = layer_by_layer.build(family, windowed=True)
    for mode in (BASELINE, f"{BASELINE}+spec"):
        asked = layer_by_layer.cell(mode, "graph")
        draft = loaded(model) if asked.speculation else None
        found = open_session(asked, loaded(model), draft).in_effect()
        assert (found.sinks, found.window) == (None, None)


def test_sinks_and_window_are_those_of_the_layers_without_one() -> None:
    asked = layer_by_layer.cell("streaming", "graph")
    found = open_session(asked, loaded(layer_by_layer.build("gemma3_text")), None).in_effect()
    assert (found.sinks, found.window) == (layer_by_layer.SINKS, layer_by_layer.WINDOW)
