"""Boundaries by card, and the frontier of length and number of sequences: pictures where a sweep has both."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.spec import BoundarySpec, SweepSpec
from tests.orchestrator.fake_run import CPU, MiB, attempt_of, demo_attempts, demo_spec
from workers.attempt import Attempt, Failure
from workers.outcome import Outcome

MODES = ["baseline", "streaming"]


def pictures(folder: Path, spec: SweepSpec, attempts: Sequence[Attempt]) -> dict[str, list[str]]:
    """The pictures of boundaries in a report, by name: what their points say."""
    with open_run(folder, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    render(folder)
    return {
        path.stem: re.findall(r'aria-label="((?:base|stream)[^"]*)"', path.read_text())
        for pattern in ("boundary-by-card-*.svg", "frontier-*.svg")
        for path in sorted((folder / "plots").glob(pattern))
    }


def test_a_boundary_by_card_where_there_are_several_budgets(tmp_path: Path) -> None:
    spec = demo_spec(modes=MODES, lengths=[500, 1000, 2000, 4000, 8000], budgets=[48 * MiB, 64 * MiB])
    [(name, told)] = pictures(tmp_path, spec, demo_attempts(spec)).items()
    assert name == "boundary-by-card-pocket-cpu-new-tokens"
    assert [words for words in told if "predicted" not in words] == [
        "baseline: 1,000 new tokens at 48 MiB",
        "baseline: 2,000 new tokens at 64 MiB",
        "streaming: 8,000 new tokens at 48 MiB",
        "streaming: 8,000 new tokens at 64 MiB",
    ]
    # Of the mode whose memory ends alone.
    assert [words.partition(": predicted ")[0] for words in told if "predicted" in words] == ["baseline"] * 2
    assert "plots/boundary-by-card-pocket-cpu-new-tokens.svg" in (tmp_path / "report.md").read_text()


def test_one_card_has_no_picture_of_cards(tmp_path: Path) -> None:
    spec = demo_spec(modes=MODES, lengths=[500, 4000])
    assert pictures(tmp_path, spec, demo_attempts(spec)) == {}


def test_cards_on_which_memory_ends_nowhere_have_none(tmp_path: Path) -> None:
    spec = demo_spec(modes=MODES, lengths=[200, 500], budgets=[48 * MiB, 64 * MiB])
    assert pictures(tmp_path, spec, demo_attempts(spec)) == {}


def test_kinds_of_device_with_one_budget_each_share_a_picture(tmp_path: Path) -> None:
    spec = demo_spec(modes=["baseline"], lengths=[500, 1000, 4000], budgets=[None])
    cells = expand(spec)
    cards = [replace(CPU, kind=f"card {size}", uuid=str(size), total_bytes=size * MiB) for size in (48, 64)]
    attempts = [
        replace(
            attempt_of(replace(cell, budget=card.total_bytes), 10 * number + place, device=card), cell=cell
        )
        for place, card in enumerate(cards)
        for number, cell in enumerate(cells)
    ]
    [(name, told)] = pictures(tmp_path, spec, attempts).items()
    assert name == "boundary-by-card-pocket-several-kinds-of-device-new-tokens"
    assert [words for words in told if "predicted" not in words] == [
        "baseline: 1,000 new tokens at 48 MiB",
        "baseline: 1,000 new tokens at 64 MiB",
    ]


def test_a_frontier_where_batches_are_of_several_sizes(tmp_path: Path) -> None:
    spec = demo_spec(modes=MODES, lengths=[500, 1000, 2000], batch_sizes=[1, 4])
    [(name, told)] = pictures(tmp_path, spec, demo_attempts(spec)).items()
    assert name == "frontier-pocket-cpu-new-tokens"
    assert [words for words in told if words.startswith("streaming")] == [
        "streaming: 2,000 new tokens of each sequence at 1 sequences",
        "streaming: 2,000 new tokens of each sequence at 4 sequences",
    ]


def test_a_frontier_of_searches_for_the_largest_batch(tmp_path: Path) -> None:
    """Each length is a point at the largest batch that passed; curves of two budgets are told apart."""
    spec = demo_spec(
        modes=["baseline"],
        lengths=[500, 1000],
        budgets=[48 * MiB, 64 * MiB],
        boundary=BoundarySpec(axis="batch_size", max_length=16),
    )
    attempts = []
    for number, cell in enumerate(expand(spec)):
        most = (cell.budget or 0) // (8 * MiB) * 500 // cell.length
        for batch in (1, most, most + 1):
            probe = replace(cell, batch_size=batch, purpose="probe")
            passed = attempt_of(replace(probe, budget=None), 10 * number + batch)
            failed = replace(
                passed,
                cell=probe,
                outcome=Outcome.OOM_DECODE,
                failure=Failure(error_type="RuntimeError", error_message="can't allocate memory"),
            )
            attempts.append(failed if batch > most else replace(passed, cell=probe))
    found = pictures(tmp_path, spec, attempts)
    told = found["frontier-pocket-cpu-new-tokens"]
    assert [words for words in told if "predicted" not in words] == [
        "baseline, 48 MiB: 1,000 new tokens of each sequence at 3 sequences",
        "baseline, 48 MiB: 500 new tokens of each sequence at 6 sequences",
        "baseline, 64 MiB: 1,000 new tokens of each sequence at 4 sequences",
        "baseline, 64 MiB: 500 new tokens of each sequence at 8 sequences",
    ]
    assert len(found) == 1, "a picture by card for each length would say the same"
