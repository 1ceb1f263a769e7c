"""Retrieval by length and depth, and the length up to which it holds."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.spec import RetrieveSpec, SweepSpec
from orchestrator.tables.retrieval import SHARE, Found, effective, wilson
from orchestrator.tables.write import derive
from tests.orchestrator.fake_run import attempt_of, demo_spec

SPEC = demo_spec(
    modes=["baseline", "streaming"],
    workload="retrieve",
    lengths=[256, 512, 1024],
    retrieve=RetrieveSpec(tasks=["single", "variables"], depths=5, samples=20),
    budgets=[None],
)
points = st.lists(
    st.builds(
        lambda length, correct, missed: Found(length, correct, correct + missed),
        st.integers(1, 10**6), st.integers(0, 50), st.integers(1, 50),
    ),
    min_size=1, unique_by=lambda point: point.length,
)  # fmt: skip


def _recorded(folder: Path, spec: SweepSpec = SPEC) -> Path:
    with open_run(folder, spec) as run:
        attempts = [attempt_of(cell, number) for number, cell in enumerate(expand(spec))]
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        run.finish("finished")
    return folder


@pytest.mark.parametrize("changes", [{"repeats": 3}, {"budgets": [None, "24GiB"]}])
def test_the_same_questions_count_once(tmp_path: Path, changes: dict[str, object]) -> None:
    spec = SweepSpec.model_validate(SPEC.model_dump() | {"lengths": [256]} | changes)
    with derive(read_run(_recorded(tmp_path, spec))) as tables:
        single = tables.retrieval.filter(task="single", mode="baseline")
    assert single["samples"].to_list() == [20] * 5


def test_counts_by_length_and_depth(tmp_path: Path) -> None:
    with derive(read_run(_recorded(tmp_path))) as tables:
        table, found = tables.retrieval, tables.effective_length
    single = table.filter(task="single", mode="streaming", length=512)
    assert single["depth"].to_list() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert single["samples"].to_list() == [20] * 5
    assert single["accuracy"].to_list() == [0, 0, 0, 1, 1], "the window is 252 tokens"
    assert single["ci_high"][0] == pytest.approx(0.1611, abs=1e-4)
    assert single["chance"].to_list() == [1 / 90_000] * 5
    assert (single["ci_low"] <= single["chance"]).to_list() == [True] * 3 + [False] * 2, (
        "at chance outside of it"
    )
    assert (single["example_answer"][0], single["chat"][0]) == (" 00000 <script>alert(1)</script>", False)
    assert table.filter(task="variables")["depth"].null_count() == 6

    lengths = {
        (row["mode"], row["task"]): (row["effective_length"], row["censored"])
        for row in found.iter_rows(named=True)
    }
    assert lengths == {
        ("baseline", "single"): (1024, True),
        ("baseline", "variables"): (1024, True),
        ("streaming", "single"): (256, False),
        ("streaming", "variables"): (1024, True),
    }


def test_the_report_shows_a_map_for_each_mode_and_escapes_what_models_wrote(tmp_path: Path) -> None:
    render(_recorded(tmp_path))
    text = (tmp_path / "report.md").read_text().split("\n## Does the model still find it?")[1]
    assert "| streaming | eager | single | 256 | 80% (71% to 87%) | 1 in 90,000 | 256 to 1,024 |" in text
    assert "| baseline | eager | single | ≥ 1,024 |" in text
    drawn = (tmp_path / "plots" / "retrieval-single-pocket-eager.svg").read_text()
    assert all(mode in drawn for mode in ("baseline", "streaming"))
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@given(points)
def test_it_holds_up_to_the_effective_length_and_not_after(found: list[Found]) -> None:
    told = effective(found)
    in_order = sorted(found, key=lambda point: point.length)
    if told.tokens is None:
        assert in_order[0].correct == 0
        return
    assert told.threshold == pytest.approx(SHARE * in_order[0].accuracy)
    assert all(p.accuracy >= told.threshold for p in in_order if p.length <= told.tokens)
    after = [p for p in in_order if p.length > told.tokens]
    assert told.censored == (not after)
    assert not after or (after[0].accuracy < told.threshold and after[0].length == told.first_below)


@given(points, st.randoms())
def test_the_order_of_lengths_does_not_matter(found: list[Found], drawn: object) -> None:
    again = list(found)
    drawn.shuffle(again)  # type: ignore[attr-defined]
    assert effective(again) == effective(found)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_holds_the_share_and_mirrors(correct: int, missed: int) -> None:
    low, high = wilson(correct, correct + missed)
    assert 0 <= low < high <= 1
    if correct + missed:
        assert low <= correct / (correct + missed) <= high
    mirrored = wilson(missed, correct + missed)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_wilson_against_published_values() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for (correct, samples), expected in {
        (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718),
    }.items():  # fmt: skip
        assert wilson(correct, samples) == pytest.approx(expected, abs=5e-5)


def test_a_run_without_questions_has_empty_tables(tmp_path: Path) -> None:
    with open_run(tmp_path, demo_spec()):
        pass
    with derive(read_run(tmp_path)) as tables:
        assert tables.retrieval.is_empty()
        assert tables.effective_length.is_empty()
        assert tables.effective_length.schema["effective_length"] == pl.Int64
