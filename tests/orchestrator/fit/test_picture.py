"""`oomline fit --out`: the longest text by number of sequences."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from orchestrator.fit import questions
from orchestrator.fit.picture import frontier
from orchestrator.spec_error import SpecError

pytestmark = pytest.mark.usefixtures("own_answers")

ASKED = ["fit", "random:pythia-14m", "--card", "1260MiB", "--prefill-chunk", "256"]


def test_a_page_has_the_picture_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "BATCHES", (1, 4))
    page, drawing = tmp_path / "page.html", tmp_path / "picture.svg"
    told = CliRunner().invoke(app, [*ASKED, "--out", str(page)]).output
    alone = re.search(r"baseline: ([\d,]+) tokens at most", told)
    assert alone is not None
    cells = re.findall(r"<td[^>]*>(?:<[^/][^>]*>)*([\d,]+)<", page.read_text())
    assert cells[0] == alone[1]
    assert int(cells[1].replace(",", "")) < int(cells[0].replace(",", "")) / 3
    assert "<svg" in page.read_text()
    assert CliRunner().invoke(app, [*ASKED, "--out", str(drawing)]).exit_code == 0
    assert drawing.read_text().startswith("<svg")


def test_what_has_no_end_has_no_picture() -> None:
    sweep = {"models": [{"target": "random:pythia-14m"}], "modes": ["streaming"]}
    assert frontier(questions.ask(sweep, ["1260MiB"], None, with_frontier=True)) is None


@pytest.mark.parametrize("out", ["picture.png", "no/such/folder/picture.svg"])
def test_a_file_that_cannot_be_written_is_refused(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "BATCHES", (1,))
    with pytest.raises(SpecError, match="--out"):
        CliRunner().invoke(app, [*ASKED, "--out", out], catch_exceptions=False)
