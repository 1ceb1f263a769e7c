"""Memory beside quality: the table, the recommendation, and where there is none."""

import re
from pathlib import Path

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.report import render
from tests.orchestrator.fake_run import demo_attempts, demo_spec

TITLE = "What is saved, and what is lost"


def rendered(folder: Path, **changes: object) -> str:
    spec = demo_spec(workload="score", lengths=[2000], engines=["graph"], budgets=[None], **changes)
    with open_run(folder, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
    return Path(render(folder)).read_text()


def test_the_smallest_cache_that_is_close_is_recommended(tmp_path: Path) -> None:
    text = rendered(tmp_path, modes=["baseline", "streaming"], kv_dtype=["auto", "int8"])
    section = text.split(TITLE)[1].split("\n## ")[0]
    assert "Use baseline · int8 KV: it takes 50% of the keys and values of baseline on this text" in section
    assert "| baseline · int8 KV | graph |" in text
    assert "after 1.0% of the tokens it would have chosen another one" in section
    rows = [line for line in section.splitlines() if line.startswith("| baseline · int8 KV")]
    assert ["0.001" in row and "0.01" in row and "99.0%" in row for row in rows] == [True]
    assert (tmp_path / "plots").is_dir()
    assert any(path.name.startswith("trade-") for path in (tmp_path / "plots").iterdir())


def test_a_picture_of_one_divergence_has_a_scale(tmp_path: Path) -> None:
    rendered(tmp_path, modes=["baseline", "streaming"])
    (picture,) = tmp_path.glob("plots/trade-*.svg")
    assert len(set(re.findall(r">(\de[+−-]\d+)</text>", picture.read_text()))) == 2


def test_where_nothing_is_close_the_full_cache_is_kept(tmp_path: Path) -> None:
    text = rendered(tmp_path, modes=["baseline", "streaming"])
    assert "Keep baseline: no other policy here chooses the same next token 95%" in text


def test_without_a_comparison_there_is_no_section(tmp_path: Path) -> None:
    assert TITLE not in rendered(tmp_path, modes=["baseline"])


def test_boundaries_stand_beside_the_divergence(tmp_path: Path) -> None:
    spec = demo_spec(
        workload="score", lengths=[2000], engines=["graph"], modes=["baseline"], kv_dtype=["auto", "int8"]
    )
    generated = spec.model_copy(update={"workload": "generate", "lengths": [500, 1000, 4000, 8000]})
    with open_run(tmp_path, spec) as run:
        attempts = [*demo_attempts(spec), *demo_attempts(generated)]
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    section = Path(render(tmp_path)).read_text().split(TITLE)[1].split("\n## ")[0]
    header, _, *rows = (line for line in section.splitlines() if line.startswith("|"))
    assert header.startswith("| policy | boundary |")
    assert {row.split("|")[1].strip(): row.split("|")[2].strip() for row in rows[:2]} == {
        "baseline": "1,000",
        "baseline · int8 KV": "1,000",
    }
    assert "It generates 1,000 tokens before memory ends, baseline 1,000: 1.00 times as many." in section
    (drawn,) = tmp_path.glob("plots/trade-*.svg")
    assert "boundary (new tokens)" in drawn.read_text()
