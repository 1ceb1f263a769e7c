"""The coverage matrix: a sample of families that changes from day to day is what the matrix says, and so is the page."""

import datetime
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.models_view import as_markdown
from tests.benchmarks.families.__main__ import BEGIN, END, measure
from workers.models import coverage
from workers.models.coverage import COLUMNS, Coverage, installed_version, read_coverage

#: Families of a day's sample, in four children at most a few seconds each.
SAMPLE = 8
PAGE = Path(__file__).parents[3] / "docs/models.md"
measured_here = pytest.mark.skipif(
    read_coverage().transformers != installed_version(), reason="measured with another transformers"
)


def sample() -> list[str]:
    """All families within weeks: every n-th, from another one each day."""
    names = [family.model_type for family in read_coverage().families]
    stride = -(-len(names) // SAMPLE)
    return names[datetime.date.today().toordinal() % stride :: stride]


@measured_here
def test_families_have_what_the_matrix_says() -> None:
    told = {family.model_type: family for family in read_coverage().families}
    rows = measure(sample(), jobs=2)
    assert len(rows) >= SAMPLE - 1
    for row in rows:
        assert not row.tracebacks
        name = row.coverage.model_type
        assert row.coverage.reasons.keys() == told[name].reasons.keys(), name
        assert row.coverage.architecture == told[name].architecture


@measured_here
def test_every_family_of_transformers_is_in_the_matrix() -> None:
    assert read_coverage().unmeasured == ()
    causal = [family for family in read_coverage().families if family.causal]
    assert len(causal) > 150
    runs = [family for family in causal if family.has("loads") and family.has("baseline")]
    assert len(runs) >= 0.95 * len(causal)


def test_every_reason_is_one_line() -> None:
    for family in read_coverage().families:
        assert set(family.reasons) <= set(COLUMNS)
        assert all(reason and "\n" not in reason for reason in family.reasons.values())


def test_the_page_is_the_matrix() -> None:
    """`python -m tests.benchmarks.families` writes both."""
    generated = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert generated.strip() == as_markdown(read_coverage())


def test_the_command_names_families_that_were_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_coverage()
    one_less = Coverage(transformers=whole.transformers, families=whole.families[1:])
    monkeypatch.setattr(coverage, "read_coverage", lambda: one_less)
    left_out = whole.families[0].model_type
    found = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert left_out in found["not_measured"]
    assert len(found["families"]) == len(whole.families) - 1
    assert all(family["reasons"].keys() <= set(COLUMNS) for family in found["families"])
    text = CliRunner().invoke(app, ["models"]).stdout
    assert f"families that were not measured: {left_out}" in " ".join(text.split())
