"""`status` counts a cell as completed exactly where a run that resumes would leave it alone."""

from pathlib import Path

import pytest

from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.status import read_status
from tests.orchestrator.sweep.simulated import attempt, device, simulate, spec
from workers.attempt import Attempt, Device
from workers.cell import Lease
from workers.outcome import Outcome

SPEC = spec(lengths=[1000], modes=["baseline"], max_attempts=3, max_crashes=2)
(CELL,) = expand(SPEC)
ON = device("a")


def _tried(outcome: Outcome, times: int) -> list[Attempt]:
    leases = [
        Lease(lease_id=str(n), cell=CELL, attempt=n, time_limit_s=9, stall_timeout_s=9)
        for n in range(1, times + 1)
    ]
    return [attempt(lease, ON, outcome, started_at=lease.attempt, duration_s=1) for lease in leases]


def _recorded(folder: Path, attempts: list[Attempt]) -> str:
    with open_run(folder, SPEC) as run:
        run.journal.append([Record(run.run_id, one) for one in attempts])
        run.finish("stopped")
    return str(folder)


def _leased_when_resumed(folder: str) -> list[tuple[str, Lease, float]]:
    history = read_run(folder).journal.attempts()
    return simulate(SPEC, [CELL], [ON], history=history).fleet.leases


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_status_and_the_run_agree_on_which_cells_are_closed(
    tmp_path: Path, outcome: Outcome, times: int
) -> None:
    folder = _recorded(tmp_path, _tried(outcome, times))
    status = read_status(folder)
    assert (status.planned, status.outcomes) == (1, {outcome.value: 1})
    assert status.completed == (0 if _leased_when_resumed(folder) else 1)


def test_a_cell_that_used_up_its_hangs_is_closed_for_status_run_and_report(tmp_path: Path) -> None:
    folder = _recorded(tmp_path, _tried(Outcome.HANG, 3))
    assert read_status(folder).completed == 1
    assert not _leased_when_resumed(folder)
    render(folder)
    assert "stopped: 1 of 1 cells." in (tmp_path / "report.md").read_text()


def test_a_cancelled_cell_is_open_for_status_run_and_report(tmp_path: Path) -> None:
    folder = _recorded(tmp_path, _tried(Outcome.CANCELLED, 1))
    assert read_status(folder).completed == 0
    assert _leased_when_resumed(folder)
    render(folder)
    assert "stopped: 0 of 1 cells." in (tmp_path / "report.md").read_text()


def test_each_kind_of_device_has_its_own_count(tmp_path: Path) -> None:
    other = Device(kind="L4", uuid="b", node="node-1", total_bytes=24 * 2**30)
    (hang,) = _tried(Outcome.HANG, 1)
    lease = Lease(lease_id="b", cell=CELL, attempt=1, time_limit_s=9, stall_timeout_s=9)
    folder = _recorded(tmp_path, [hang, attempt(lease, other, started_at=0, duration_s=1)])
    status = read_status(folder)
    assert (status.completed, status.planned) == (1, 2)
    assert status.outcomes == {"ok": 1, "hang": 1}
