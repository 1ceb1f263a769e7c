"""Cells and probes are counted apart; buckets and texts of different length are not compared."""

import polars as pl
import pytest

from orchestrator.report.sections.failures import counts
from orchestrator.report.sections.quality import repeated_share
from orchestrator.tables.boundary_rows import bracket_error_pct


def _final(*rows: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["purpose", "outcome"], orient="row")


def test_cells_and_probes_are_counted_apart() -> None:
    said = counts(
        _final(*[("measure", "ok")] * 13, *[("measure", "oom_decode")] * 2, ("measure", "pruned"))
        .vstack(_final(*[("probe", "oom_prefill")] * 13, *[("probe", "ok")] * 10))
    )  # fmt: skip
    assert said.startswith("3 of 16 cells did not end ok (2 oom_decode and 1 pruned).")
    assert "13 of 23 probes did not end ok (13 oom_prefill): a search looks for them." in said


def test_a_kind_that_all_ended_ok_is_said_to() -> None:
    assert counts(_final(("measure", "ok"), ("probe", "oom_decode"))).startswith(
        "Every cell ended ok. 1 of 1 probe"
    )
    assert "probe" not in counts(_final(("measure", "crashed")))


@pytest.mark.parametrize(
    ("predicted", "error"), [(1536, 0.0), (1616, 0.0), (1664, 0.0), (1728, 100 / 26), (1440, -6.25)]
)
def test_a_prediction_within_the_bracket_has_no_error(predicted: int, error: float) -> None:
    """Beyond it, the distance to its nearer end counts, however coarse the resolution."""
    assert bracket_error_pct(predicted, 1536, 1664) == pytest.approx(error)


def test_an_open_bracket_has_no_error() -> None:
    assert bracket_error_pct(1616, 1536, None) is None
    assert bracket_error_pct(None, 1536, 1664) is None


def test_the_share_of_a_text_that_goes_in_circles() -> None:
    assert repeated_share(range(100)) == 0.0
    assert repeated_share([1, 2] * 50) == pytest.approx(1 - 2 / 93)
    assert repeated_share(range(8)) is None
