"""A mode is of use only as far as it is fast enough, sane, and finds what it read; the report says which end decided."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.report.sections.weighing import Evidence, use_of, weigh
from orchestrator.report.speed_claims import Speed
from orchestrator.spec import BoundarySpec, FloorsSpec, RetrieveSpec
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.quality import QualityBoundary
from tests.orchestrator.fake_run import attempt_of, demo_attempts, demo_spec
from workers.cell import Cell

OF = {"model": "pocket", "dtype": "float32", "engine": "eager"}


@dataclass
class Identified:
    identity: dict[str, Any]


@dataclass
class Passed:
    """A mode that passed `tokens`, in place of the report's own."""

    row: BoundaryRow
    tokens: int
    name: str
    speed: Speed


def _passed(mode: str, tokens: int, tokens_per_s: float, joules: float | None) -> Passed:
    row = cast(BoundaryRow, Identified(OF | {"mode": mode}))
    return Passed(row, tokens, mode, Speed(mode, tokens_per_s, 3, joules_per_token=joules))


BASELINE, STREAMING = _passed("baseline", 2000, 100.0, 1.5), _passed("streaming", 8000, 300.0, 0.5)
UNMETERED = _passed("window", 8000, 300.0, None)


def _evidence(
    effective: dict[str, int | None] | None = None,
    departs: dict[str, int] | None = None,
    tokens_per_s: float | None = None,
    joules: float | None = None,
    **of: str,
) -> Evidence:
    rows = [
        OF | {"task": "passkey"} | of | {"mode": mode, "effective_length": tokens, "censored": False}
        for mode, tokens in (effective or {}).items()
    ]
    schema = dict.fromkeys([*OF, "task", "mode"], pl.String) | {
        "effective_length": pl.Int64,
        "censored": pl.Boolean,
    }
    quality = [
        QualityBoundary(
            identity=OF | {"mode": mode},
            in_context=10.0,
            beyond=None,
            departs_at=at,
            scored_to=9000,
            tokens_per_s=None,
        )
        for mode, at in (departs or {}).items()
    ]
    floors = FloorsSpec(tokens_per_s=tokens_per_s, energy_per_token_j=joules)
    return Evidence(quality, pl.DataFrame(rows, schema=schema), floors)


@pytest.mark.parametrize(
    ("evidence", "kept", "said"),
    [
        (_evidence(), ["streaming"], ""),
        (
            _evidence({"streaming": 256}),
            ["baseline"],
            " Retrieval decided: streaming passes 8,000 tokens, but finds what it read only up to 256.",
        ),
        (
            _evidence(departs={"streaming": 900}),
            ["baseline"],
            " Perplexity decided: streaming passes 8,000 tokens, but its perplexity stays sane only up to 900.",
        ),
        (_evidence({"streaming": 3000}), ["streaming"], ""),
        (_evidence({"streaming": None, "baseline": None}), ["streaming"], ""),
        (
            _evidence({"streaming": None, "baseline": 1000}),
            ["baseline"],
            " Retrieval decided: streaming passes 8,000 tokens, but finds nothing of what it read.",
        ),
        (_evidence({"streaming": 256}, engine="graph"), ["streaming"], ""),
        (_evidence({"streaming": 256, "baseline": 256}), ["baseline", "streaming"], ""),
        (
            _evidence({"streaming": 256}, tokens_per_s=200.0),
            ["streaming"],
            " Speed decided: baseline (100.0) is below the floor of 200 tokens/s.",
        ),
        (_evidence(tokens_per_s=500.0), ["streaming"], " No mode keeps to the floor of 500 tokens/s."),
        (
            _evidence({"streaming": 256}, joules=1.0),
            ["streaming"],
            " Energy decided: baseline (1.5) is above the bound of 1 J per token.",
        ),
        (_evidence(joules=0.1), ["streaming"], " No mode keeps to the bound of 0.1 J per token."),
    ],
)
def test_the_nearest_end_counts_and_the_furthest_mode_wins(
    evidence: Evidence, kept: list[str], said: str
) -> None:
    found, words = weigh([BASELINE, STREAMING], evidence)
    assert ([extent.name for extent in found], words) == (kept, said)


def test_a_mode_whose_energy_was_not_metered_is_not_held_to_it() -> None:
    found, words = weigh([BASELINE, UNMETERED], _evidence(joules=1.0))
    assert (found, words) == (
        [UNMETERED],
        " Energy decided: baseline (1.5) is above the bound of 1 J per token.",
    )


def test_a_mode_is_of_use_up_to_its_first_end() -> None:
    evidence = _evidence({"streaming": 700}, {"streaming": 600})
    assert (use_of(STREAMING, evidence).tokens, use_of(STREAMING, evidence).ended_by) == (600, "perplexity")
    assert use_of(BASELINE, evidence).ended_by == "memory"


def test_a_report_that_asked_recommends_the_mode_that_still_finds_it(tmp_path: Path) -> None:
    """A search for memory's end beside the questions: streaming comes further, and forgets."""
    spec = demo_spec(
        modes=["baseline", "streaming"],
        workload="retrieve",
        lengths=[256, 512],
        retrieve=RetrieveSpec(samples=4),
        boundary=BoundarySpec(max_length=4000, resolution=2000, confirm=1),
    )
    attempts = [attempt_of(cell, number) for number, cell in enumerate(expand(spec))]
    for attempt in demo_attempts(demo_spec(modes=spec.modes, lengths=[2000, 4000])):
        cell: Cell = replace(attempt.cell, purpose="probe")
        attempts.append(replace(attempt, cell=cell, lease_id=f"{cell.cell_id}.1.x"))
    with open_run(tmp_path, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        run.finish("finished")
    render(tmp_path)
    answer = (tmp_path / "report.md").read_text().split("## ")[1]
    assert "baseline found it up to 512 tokens, the longest tried" in answer
    assert "streaming found it up to 256 tokens, and no longer at 512" in answer
    assert "Use **baseline**" in answer
    assert (
        "Retrieval decided: streaming passes 4,000 tokens, but finds what it read only up to 256." in answer
    )
