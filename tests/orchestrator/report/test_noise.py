"""A report of a noisy machine says so first, and leaves out what its runs do not carry; energy stands beside speed."""

import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.journal.folder import open_run
from orchestrator.journal.journal import Journal
from orchestrator.journal.record import Record
from orchestrator.report.noisy_machine import noisy_machine
from orchestrator.report.render import render
from orchestrator.report.speed_claims import Speed, claim, is_carried, is_faster
from orchestrator.tables.attempts import attempts
from tests.orchestrator.fake_run import CPU, demo_attempts, demo_spec
from workers.attempt import Measured
from workers.machine_state import MachineState
from workers.outcome import Outcome


def _report(folder: Path, wait_pct: float, repeats: int = 1, other_load: float = 0.0) -> str:
    """Every second cell waited for a core; each took 0.12 J per token, 0.06 where the mode streams."""
    spec = demo_spec(lengths=[500], repeats=repeats)
    found = []
    for number, attempt in enumerate(demo_attempts(spec)):
        assert attempt.outcome is Outcome.OK
        joules = 0.12 if attempt.cell.mode_spec.policy.grows else 0.06
        machine = MachineState(
            host_cores=2,
            cpu_wait_pct=wait_pct * (number % 2),
            host_other_load=other_load,
            energy_per_token_j=joules,
            energy_j=500 * joules,
        )
        found.append(dataclasses.replace(attempt, machine=machine))
    with open_run(folder, spec) as run:
        run.plan(len(found))
        run.devices([CPU])
        run.journal.append([Record(run.run_id, attempt) for attempt in found])
        run.finish("finished")
    render(folder)
    return (folder / "report.md").read_text()


def test_a_noisy_run_says_so_before_its_answer(tmp_path: Path) -> None:
    text = _report(tmp_path, 30.0)
    before, answer = text.split("## The answer")[0], text.split("## ")[1]
    assert "Measured on a noisy machine: 2 of 4 cells (the cell waited for a core in 2)" in before
    assert "To do: run fewer cells at a time (--slots); set" in before
    assert before.count("set “repeats: 3”") == 1
    assert "too few runs on a noisy machine" in answer or "too few runs to tell" in answer
    assert "‡" in text
    sentences = json.loads((tmp_path / "answer.json").read_text())["sentences"]
    assert sentences[0].startswith("Measured on a noisy machine")


def test_who_waited_for_others_is_not_told_to_run_fewer_cells(tmp_path: Path) -> None:
    before = _report(tmp_path, 30.0, other_load=1.5).split("## The answer")[0]
    assert "the cell waited for a core in 2" in before
    assert "To do: stop what else computes there; set" in before


def test_a_quiet_run_says_nothing_of_it(tmp_path: Path) -> None:
    text = _report(tmp_path, 3.0)
    assert "Measured on" not in text
    assert "‡" not in text


def test_a_cell_without_a_speed_is_not_counted_among_the_noisy_ones(tmp_path: Path) -> None:
    waited = MachineState(host_cores=2, cpu_wait_pct=30.0)
    found = [
        dataclasses.replace(
            attempt, outcome=Outcome.LOAD_ERROR, phase="load", measured=Measured(), machine=waited
        )
        for attempt in demo_attempts(demo_spec(lengths=[500]))
    ]
    journal = Journal.open(tmp_path)
    journal.append([Record("run", attempt) for attempt in found])
    with journal.view() as view:
        table = attempts(view)
    assert table["noisy"].all()
    assert noisy_machine(table) is None


def test_energy_stands_beside_speed_and_in_the_recommendation(tmp_path: Path) -> None:
    text = _report(tmp_path, 0.0, repeats=3)
    assert "energy per million tokens" in text
    assert "| 120 kJ" in text
    assert "| 60 kJ" in text
    assert "A million tokens take" in text
    assert "plots/energy-by-length-" in text


NOISY = Speed("baseline", 100.0, 3, 80.0, 120.0, noisy=True)


@pytest.mark.parametrize(
    ("repeats", "noisy", "carried"), [(1, True, False), (1, False, True), (3, True, True)]
)
def test_one_run_on_a_noisy_machine_carries_no_difference_however_large(
    repeats: int, noisy: bool, carried: bool
) -> None:
    low, high = (250.0, 350.0) if repeats == 3 else (None, None)
    one = Speed("streaming", 300.0, repeats, low, high, noisy=noisy)
    other = dataclasses.replace(NOISY, noisy=noisy)
    assert is_faster(one, other) is carried
    assert is_carried(one, other) is carried


def test_what_is_within_the_noise_of_the_machine_is_said_to_be() -> None:
    one = Speed("streaming", 110.0, 3, 88.0, 132.0, noisy=True)
    assert not is_carried(one, NOISY)
    assert (
        claim(one, NOISY) == "it is neither faster nor slower than baseline beyond the noise of this machine"
    )


def test_whether_speculation_pays_is_left_open_on_a_noisy_machine(tmp_path: Path) -> None:
    """Three runs of each, 45 % apart, each off by up to 60 %."""
    answer = _report(tmp_path, 60.0, repeats=3).split("## ")[1]
    assert "whether speculation is faster cannot be told from runs on a noisy machine" in answer
