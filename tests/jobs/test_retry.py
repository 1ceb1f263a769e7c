"""What is tried again, by which command, and what the exit status says of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import run as command
from jobs.cli import main
from orchestrator.journal.folder import read_run
from orchestrator.journal.journal import Journal
from orchestrator.spec_error import SpecError
from orchestrator.status import read_status
from orchestrator.sweep.summary import Summary
from orchestrator.tables.write import derive
from tests.jobs.simulated_run import simulated_run
from tests.orchestrator.sweep.simulated import Fate, spec
from workers.attempt import Device
from workers.cell import Lease
from workers.outcome import Outcome

ASKED = spec(modes=["baseline"], lengths=[1000], repeats=2)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a sweep in one folder, in which every cell ends as told. Returns exit status and output."""

    def run(outcome: Outcome, asked: object = ASKED, **options: object) -> tuple[int, str]:
        def world(lease: Lease, on: Device) -> Fate:
            return Fate(1, outcome)

        monkeypatch.setattr(command, "run_sweep", simulated_run(world))
        status = command.run_command(
            asked,  # type: ignore[arg-type]
            str(tmp_path / "run"),
            address=None,
            cpu_slots=None,
            **options,  # type: ignore[arg-type]
        )
        return status, capsys.readouterr().out

    return run


def test_what_could_not_be_had_is_tried_by_the_same_command(run: Run, tmp_path: Path) -> None:
    status, said = run(Outcome.UNAVAILABLE)
    assert status == 1
    assert "(2 unavailable); 2 to be tried again: run the same command to go on" in said
    assert "note: 2 cells could not have what a cell needs: unavailable" in said
    assert read_status(str(tmp_path / "run")).state == "stopped"
    status, said = run(Outcome.OK)
    assert status == 0
    assert "2 cells computed, 0 reused (2 ok)" in said
    assert "note" not in said
    assert read_status(str(tmp_path / "run")).state == "finished"
    assert len(Journal.open(tmp_path / "run", writable=False).attempts()) == 4


def test_what_failed_of_itself_is_tried_again_where_its_outcome_is_named(run: Run, tmp_path: Path) -> None:
    status, said = run(Outcome.LOAD_ERROR)
    assert status == 3
    assert "could not be loaded for any cell (load_error)" in said
    assert run(Outcome.OK)[0] == 3
    status, said = run(Outcome.OK, retry={Outcome.LOAD_ERROR, Outcome.HANG})
    assert status == 0
    assert "2 cells computed, 0 reused (2 ok)" in said
    status, said = run(Outcome.LOAD_ERROR)
    assert status == 0
    assert "0 cells computed, 2 reused (2 ok)" in said
    with derive(read_run(tmp_path / "run")) as tables:
        finals = tables.attempts.filter("final")
    assert finals["outcome"].to_list() == ["ok", "ok"]


def test_a_crash_is_counted_anew_where_it_is_tried_again(run: Run) -> None:
    assert run(Outcome.CRASHED)[0] == 3
    assert run(Outcome.CRASHED)[0] == 3
    status, said = run(Outcome.CRASHED, retry={Outcome.QUARANTINED})
    assert status == 3
    assert "2 cells computed, 0 reused (2 quarantined)" in said
    assert run(Outcome.OK, retry={Outcome.QUARANTINED})[0] == 0


@pytest.mark.parametrize(
    ("outcomes", "fields", "status"),
    [
        ({Outcome.OK: 1, Outcome.OOM_DECODE: 2, Outcome.LOAD_ERROR: 1}, {}, 0),
        ({}, {}, 0),
        ({Outcome.LOAD_ERROR: 3, Outcome.OK: 1}, {"unloadable": ("org/model",)}, 3),
        ({Outcome.OK: 1, Outcome.QUARANTINED: 1}, {}, 3),
        ({Outcome.OK: 1, Outcome.QUARANTINED: 1, Outcome.CANCELLED: 1}, {}, 1),
        ({Outcome.OK: 1, Outcome.INFRA_ERROR: 1}, {}, 1),
        ({Outcome.OK: 1, Outcome.UNAVAILABLE: 1}, {"unloadable": ("org/model",)}, 1),
        ({Outcome.OK: 1}, {"left": 1}, 1),
        ({Outcome.OK: 1}, {"stopped": True}, 1),
    ],
)
def test_the_exit_status_tells_what_is_left_from_what_failed(
    outcomes: dict[Outcome, int], fields: dict[str, object], status: int
) -> None:
    summary = Summary(run_id="a", computed=sum(outcomes.values()), reused=0, left=0, outcomes=outcomes)
    assert dataclasses.replace(summary, **fields).exit_status == status  # type: ignore[arg-type]


def test_an_unknown_outcome_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["oomline", "run", "sweep.yaml", "--retry", "quarantined,loaderror"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--retry quarantined,loaderror: unknown outcome 'loaderror'; the nearest is 'load_error'" in said


def test_a_folder_takes_more_of_the_same_where_told_so(run: Run) -> None:
    """More repeats and lengths; what is there is not run again."""
    assert run(Outcome.OK)[0] == 0
    more = spec(modes=["baseline", "streaming"], lengths=[1000, 2000], repeats=3, time_limit_s=9)
    with pytest.raises(
        SpecError, match=r"holds a part of this sweep \(.*repeats: 2 there, 3 now.*add --extend"
    ):
        run(Outcome.OK, more)
    status, said = run(Outcome.OK, more, extend=True)
    assert status == 0
    assert "10 cells computed, 2 reused (12 ok)" in said
    assert "0 cells computed, 12 reused" in run(Outcome.OK, more)[1]
    with pytest.raises(
        SpecError,
        match=r"another sweep \(modes: \[\"streaming\"\] only there; lengths: \[2000\] only there; repeats",
    ):
        run(Outcome.OK, extend=True)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"speculation": {"gamma": 2}}, {"lengths": [2000]}])
def test_what_would_change_cells_is_no_extension(run: Run, changed: dict[str, object]) -> None:
    run(Outcome.OK)
    fields = {"modes": ["baseline"], "lengths": [1000], "repeats": 4} | changed
    with pytest.raises(
        SpecError, match=rf"another sweep .*{next(iter(changed))}.*--extend adds to models, modes"
    ):
        run(Outcome.OK, spec(**fields), extend=True)
