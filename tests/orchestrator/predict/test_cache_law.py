"""The law of a cache by its two sources: the shipped shapes, and what `plan` says where they part."""

from typing import Any

import pytest

from orchestrator.forecast import forecast
from orchestrator.predict import cache_law as laws
from orchestrator.predict.cache_law import CacheLaw, cache_law, difference
from orchestrator.predict.kv_formula import FormulaError, formula_law
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.predict.rehearsed.kv_law import rehearsed_law
from orchestrator.spec import parse_spec
from workers.cell import Cell, ModelRef
from workers.models.config import read_config
from workers.models.shapes import shapes
from workers.modes import Streaming

#: One of every kind of layer. `python -m tests.benchmarks.families` holds the rehearsal to a live cache for every family.
KINDS = (
    *("pythia-1b", "llama-3.2-1b", "qwen3-8b", "gemma-3-27b", "gemma-4-26b-a4b", "gpt-oss-20b"),
    *("glm-4.7-flash", "deepseek-v3.2", "qwen3.5-27b", "nemotron-h-56b", "llama-4-scout-17b-16e"),
)
#: No formula: what several tokens are compressed to.
UNTOLD = ("deepseek-v4-flash",)


def law_of(name: str, **fields: Any) -> CacheLaw | None:
    values = {"mode": "baseline", "engine": "eager", "prompt_tokens": 64, "length": 100} | fields
    cell = Cell(model=ModelRef(target=f"random:{name}"), **values)
    return cache_law(cell, ModelShapes().of(cell))


@pytest.mark.parametrize("name", KINDS)
def test_formulas_and_rehearsal_tell_the_same_law(name: str) -> None:
    config = read_config(f"random:{name}", ModelRef(target=name))
    law = formula_law(config, 2)
    assert (law.per_token, law.constant) == rehearsed_law(config, "bfloat16")
    assert difference(ModelRef(target=f"random:{name}"), f"random:{name}") is None


def test_every_shape_has_a_formula_but_those_that_are_named() -> None:
    for name in shapes():
        config = read_config(f"random:{name}", ModelRef(target=name))
        if name in UNTOLD:
            with pytest.raises(FormulaError, match="no formula here tells"):
                formula_law(config, 2)
        else:
            assert formula_law(config, 2).per_token > 0


def test_the_published_laws() -> None:
    assert law_of("llama-3.1-8b") == CacheLaw(131_072, 0, "rehearsal")
    assert law_of("gemma-3-27b") == CacheLaw(81_920, 435_781_632, "rehearsal")
    assert law_of("gemma-3-27b", batch_size=3) == CacheLaw(3 * 81_920, 3 * 435_781_632, "rehearsal")


def test_a_ring_is_all_constant_and_a_model_that_cannot_be_rehearsed_has_its_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = law_of("pythia-160m", mode="streaming", streaming=parse_spec(spec()).streaming)
    assert ring is not None
    assert (ring.bytes_per_token, ring.source) == (0, "engine")
    assert ring.constant_bytes > 0

    def never(*_: object) -> tuple[int, int]:
        raise laws.NotRehearsable("not today")

    monkeypatch.setattr(laws, "rehearsed_law", never)
    assert law_of("llama-3.1-8b") == CacheLaw(131_072, 0, "formula")


def spec() -> dict[str, Any]:
    return {"name": "a", "models": [{"target": "random:pythia-160m"}], "modes": ["baseline"], "lengths": [99]}


def test_plan_says_where_the_sources_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forecast(parse_spec(spec()), "cpu").differences == ()
    monkeypatch.setattr(laws, "rehearsed_law", lambda *_: (40_000, 7))
    (line,) = forecast(parse_spec(spec()), "cpu").differences
    assert line == (
        "random:pythia-160m: KV cache by the formulas 36,864 bytes per token and 0 constant, by rehearsal 40,000 and 7; "
        "the rehearsal is used"
    )


@pytest.mark.parametrize("mode", ["tova", "keydiff"])
def test_a_cache_that_drops_tokens_is_all_constant(mode: str) -> None:
    """64 tokens of 12 layers, 768 numbers of two bytes."""
    law = law_of("pythia-160m", mode=mode, streaming=Streaming(sinks=4, window=60))
    assert law == CacheLaw(0, 64 * 12 * 2 * 768 * 2, "engine")


def test_of_transformers_caches_in_fewer_bits_nothing_is_told() -> None:
    assert law_of("pythia-160m", kv_dtype="fp8") is None
