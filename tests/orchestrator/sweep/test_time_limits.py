"""How long a cell may take."""

from orchestrator.plan import expand
from orchestrator.sweep.time_limits import lease_for
from orchestrator.sweep.work.item import Key, WorkItem
from tests.orchestrator.sweep.simulated import spec


def item(seconds: float, **fields: object) -> WorkItem:
    cell = expand(spec(**fields))[0]
    return WorkItem(key=Key(cell.cell_id, "H100"), cell=cell, seconds=seconds, rank=(0.0, 0, 0))


def test_limits_follow_the_prediction_generously() -> None:
    short = lease_for(item(1.0), 1, 0.1, spec())
    assert (short.time_limit_s, short.stall_timeout_s) == (600, 120)
    long = lease_for(item(1000.0), 1, 30.0, spec())
    assert (long.time_limit_s, long.stall_timeout_s) == (20_000, 600)
    assert lease_for(item(1.0, engines=["graph"]), 1, 0.1, spec()).stall_timeout_s == 300


def test_the_sweep_file_overrides_them() -> None:
    asked = spec(time_limit_s=30, stall_timeout_s=5)
    lease = lease_for(item(1000.0), 2, 30.0, asked)
    assert (lease.time_limit_s, lease.stall_timeout_s) == (30, 5)


def test_every_lease_has_an_id_of_its_own() -> None:
    one, other = (lease_for(item(1.0), 3, 0.1, spec()) for _ in range(2))
    assert one.lease_id != other.lease_id
    assert one.lease_id.startswith(f"{one.cell.cell_id}.3.")
