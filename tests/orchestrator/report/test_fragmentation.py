"""The section on fragmentation: what given tables carry, and nothing that they do not."""

import dataclasses
import re
from pathlib import Path

import polars as pl
import pytest

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.spec import SweepSpec
from tests.orchestrator.boundary.attempts import attempt_of
from workers.attempt import Attempt, Device
from workers.outcome import Outcome

pytestmark = pytest.mark.usefixtures("own_answers")

MiB, GiB = 2**20, 2**30
CARD = Device(kind="NVIDIA H100 80GB HBM3", uuid="GPU-0", node="n", total_bytes=80 * GiB)
BUDGET = 800 * MiB
CONTEXT = 600 * MiB
PER_TOKEN = 6 * 2 * 128 * 2  # layers x (K, V) x hidden x bfloat16


def _spec(**fields: object) -> SweepSpec:
    raw = {
        "name": "t",
        "models": [{"target": "random:pythia-14m"}],
        "modes": ["baseline"],
        "budgets": [BUDGET],
        "lengths": [500],
        "boundary": {"resolution": 64, "phases": ["prefill_chunked"], "prefill_chunk": 256, "confirm": 1},
        **fields,
    }
    return SweepSpec.model_validate(raw)


def _ended(allocator: str, last_ok: int, fragmented: int | None) -> list[Attempt]:
    """A search's last two probes. `fragmented`: bytes when memory ran out; None: torch did not tell."""
    found = []
    for prompt in (last_ok, last_ok + 64):
        (cell,) = expand(_spec(prompt_tokens=[prompt], lengths=[1], allocator=[allocator]))
        probe = dataclasses.replace(cell, purpose="probe", prefill_chunk=256)
        told = (
            {"oom_allocated_bytes": 60 * MiB, "oom_reserved_bytes": 60 * MiB + fragmented}
            if fragmented is not None
            else {}
        )
        outcome = Outcome.OK if prompt == last_ok else Outcome.OOM_PREFILL
        attempt = attempt_of(probe, outcome, device=CARD, **({} if outcome is Outcome.OK else told))
        found.append(dataclasses.replace(attempt, peak_device_bytes=790 * MiB, context_bytes=CONTEXT))
    return found


def _report(folder: Path, spec: SweepSpec, attempts: list[Attempt]) -> str:
    """The section alone, empty where there is none."""
    with open_run(folder, spec) as run:
        run.plan(1)
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        run.finish("finished")
    render(folder)
    text = (folder / "report.md").read_text()
    return (
        text.split("## What fragmentation costs")[1].split("\n## ")[0]
        if "What fragmentation costs" in text
        else ""
    )


def test_what_fragmentation_took_and_what_other_settings_are_predicted_to_give(tmp_path: Path) -> None:
    text = _report(tmp_path, _spec(), _ended("default", 20_032, 80 * MiB))
    assert "| 20,096 | 60.0 MiB | 140.0 MiB | 790.0 MiB | 80.0 MiB | 10.0 % |" in text
    room = 80 * MiB // PER_TOKEN
    assert f"fragmentation held 80.0 MiB (10 % of the card), room for at most {room:,} tokens." in text
    table = pl.read_parquet(tmp_path / "tables" / "boundaries.parquet")
    (row,) = table.iter_rows(named=True)
    assert row["predicted_by"] == "rehearsal"
    assert row["fragmentation_bytes"] == 80 * MiB
    assert row["device_seconds"] == 2.0
    moved = re.search(
        r"predicted: <code>expandable_segments</code> moves the boundary from ([\d,]+) to ([\d,]+)", text
    )
    assert moved is not None
    assert [int(number.replace(",", "")) for number in moved.groups()] == [
        row["predicted"],
        row["predicted_expandable"],
    ]
    assert row["predicted_expandable"] > row["predicted"]
    assert "To measure it: <code>allocator: \\[default, expandable]</code>" in text
    assert "measured:" not in text


def test_measured_under_both_it_stands_beside_the_prediction(tmp_path: Path) -> None:
    spec = _spec(allocator=["default", "expandable"])
    attempts = [*_ended("default", 20_032, 80 * MiB), *_ended("expandable", 22_016, 2 * MiB)]
    text = _report(tmp_path, spec, attempts)
    assert re.search(
        r"predicted: <code>expandable_segments</code> moves the boundary from .* measured: expandable_segments moves the boundary from 20,032 to 22,016\.",
        text,
    )
    assert "To measure it" not in text
    assert text.count("fragmentation held") == 1, "of the default alone"


def test_little_fragmentation_has_its_row_and_no_sentence(tmp_path: Path) -> None:
    text = _report(tmp_path, _spec(), _ended("default", 20_032, 8 * MiB))
    assert "| 8.0 MiB | 1.0 % |" in text
    for word in ("predicted:", "measured:", "fragmentation held"):
        assert word not in text


def test_settings_of_the_environment_are_no_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    text = _report(tmp_path, _spec(), _ended("default", 20_032, 80 * MiB))
    assert "80.0 MiB" in text
    assert "predicted:" not in text


def test_where_torch_told_nothing_there_is_no_section(tmp_path: Path) -> None:
    assert _report(tmp_path, _spec(), _ended("default", 20_032, None)) == ""
