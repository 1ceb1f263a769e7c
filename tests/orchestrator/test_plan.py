"""Cells: every combination once, nothing in a cell that its mode does not read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan import expand
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.spec_error import SpecError
from workers.cell import from_json, to_json
from workers.modes import MODES

MODEL = {"target": "random:pythia-14m", "draft": "random:pythia-14m"}


def spec_with(**keys: object) -> SweepSpec:
    return parse_spec({"name": "t", "models": [MODEL], "lengths": [8, 16], **keys})


def test_plain_cells_are_shared_by_models_that_differ_only_in_their_draft() -> None:
    two_drafts = [MODEL, MODEL | {"draft": "random:pythia-31m"}]
    cells = expand(spec_with(models=two_drafts, modes=["baseline", "baseline+spec"], lengths=[8]))
    assert sorted(cell.mode for cell in cells) == ["baseline", "baseline+spec", "baseline+spec"]


def test_full_cache_cells_do_not_depend_on_the_window() -> None:
    narrow, wide = (
        {c.cell_id for c in expand(spec_with(modes=["baseline"], streaming={"window": w}))} for w in (64, 128)
    )
    assert narrow == wide
    narrow, wide = (
        {c.cell_id for c in expand(spec_with(modes=["streaming"], streaming={"window": w}))}
        for w in (64, 128)
    )
    assert not narrow & wide


def test_modes_interleave_across_repeats() -> None:
    cells = expand(spec_with(modes=["baseline", "streaming"], lengths=[8], repeats=3))
    assert [(c.repeat, c.mode) for c in cells] == [
        (r, m) for r in range(3) for m in ("baseline", "streaming")
    ]


def test_scored_cells_have_no_prompt_and_no_penalty() -> None:
    (cell,) = expand(spec_with(workload="score", modes=["window"], lengths=[64], repetition_penalty=[1.2]))
    assert (cell.prompt_tokens, cell.repetition_penalty) == (0, 1.0)


@settings(max_examples=50)
@given(
    modes=st.lists(
        st.sampled_from([m for m in MODES if "generate" in MODES[m].workloads]), min_size=1, unique=True
    ),
    lengths=st.lists(st.integers(1, 10**6), min_size=1, max_size=4, unique=True),
    budgets=st.lists(st.none() | st.integers(2**20, 2**40), min_size=1, max_size=3, unique=True),
    repeats=st.integers(1, 3),
    acceptance=st.none() | st.floats(0, 1),
)
def test_every_combination_once_and_a_cell_survives_json(
    modes, lengths, budgets, repeats, acceptance
) -> None:
    spec = spec_with(
        modes=modes, lengths=lengths, budgets=budgets, repeats=repeats, speculation={"acceptance": acceptance}
    )
    cells = expand(spec)
    assert len(cells) == len(modes) * len(lengths) * len(budgets) * repeats
    assert len({cell.cell_id for cell in cells}) == len(cells)
    for cell in cells:
        assert from_json(to_json(cell)) == cell


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"models": [MODEL | {"draft": "random:pythia-12b"}]}, ["draft", "50304", "50688"]),
        (
            {"models": [{"target": "./no-such-model"}], "modes": ["baseline"]},
            ["models.0.target", "./no-such-model"],
        ),
        (
            {"models": [{"target": "random:pythia-2.9b"}], "modes": ["baseline"]},
            ["random:pythia-2.9b", "pythia-2.8b"],
        ),
        ({"corpus": "no-such-text.txt"}, ["corpus", "no-such-text.txt"]),
        ({"modes": ["baseline"], "budgets": ["20MiB"]}, ["budgets", "MiB", "baseline"]),
    ],
)
def test_bad_input_is_refused_before_any_device_is_touched(keys: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        refuse_bad_input(spec_with(**keys))
    for word in words:
        assert word in str(refused.value)
