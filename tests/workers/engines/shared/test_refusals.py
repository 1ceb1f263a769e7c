"""What both engines refuse, in the same words."""

import dataclasses
import re
from typing import Any

import pytest

from tests.workers.engines import layer_by_layer
from tests.workers.engines.eager.tiny import loaded
from tests.workers.engines.layer_by_layer import build
from tests.workers.models.families import VOCAB
from workers.cell import Cell
from workers.engines import open_session
from workers.engines.session import ModeUnsupported
from workers.modes import MODES, Mode, Speculation
from workers.modes.decoders import SPECULATIVE
from workers.modes.policies import FULL

ENGINES = ("eager", "graph")


def cell(mode: str, engine: str, **fields: Any) -> Cell:
    return dataclasses.replace(layer_by_layer.cell(mode, engine), **fields)


def refused(asked: Cell, *, draft_vocabulary: int | None = None, draft: bool = True, **config: Any) -> str:
    target, other = loaded(build("llama")), loaded(build("llama")) if draft else None
    if draft_vocabulary is not None and other is not None:
        other = dataclasses.replace(other, vocab_size=draft_vocabulary)
    for name, value in config.items():
        setattr(target.model.config, name, value)
    with pytest.raises(ModeUnsupported) as error:
        open_session(asked, target, other)
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "how", "words"),
    [
        ({"batch_size": 2}, {}, "one sequence at a time, not a batch of 2"),
        ({}, {"draft": False}, "needs a draft model"),
        ({}, {"draft_vocabulary": 5}, rf"vocabulary \(5\) differs from the target's \({VOCAB}\)"),
    ],
)
def test_both_engines_refuse_in_the_same_words(fields: Any, how: Any, words: str) -> None:
    said = {refused(cell("streaming+spec", engine, **fields), **how) for engine in ENGINES}
    assert len(said) == 1
    assert re.search(words, said.pop())


def test_the_graph_engine_names_what_it_lacks() -> None:
    asked = cell("baseline", "graph")
    assert "model type moon (it runs" in refused(asked, model_type="moon")
    dynamic = {"rope_parameters": {"rope_type": "dynamic"}}
    assert "rope type 'dynamic' changes its frequencies" in refused(asked, **dynamic)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_injected_acceptance_is_never_left_out_in_silence(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that makes its own proposals only."""
    own = Mode(FULL, dataclasses.replace(SPECULATIVE, takes_oracle=False))
    for module in ("workers.cell", "tests.workers.engines.layer_by_layer"):
        monkeypatch.setattr(f"{module}.MODES", {**MODES, "baseline+own": own})
    asked = cell("baseline+own", engine, speculation=Speculation(gamma=3, acceptance=0.5))
    assert "makes its own proposals" in refused(asked)


def test_an_engine_without_a_policy_says_where_it_runs() -> None:
    assert refused(cell("recompute", "graph")) == "the graph engine has no recompute: it runs on eager"
