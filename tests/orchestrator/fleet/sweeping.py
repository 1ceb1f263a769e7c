"""A sweep on a real Ray, by other actors than the command line's."""

import sys

from orchestrator.fleet.connect import connected
from orchestrator.fleet.ray_fleet import RayFleet
from orchestrator.fleet.slot_entry import FleetOptions
from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from orchestrator.sweep.loop import Sweep
from orchestrator.watch import Watcher
from orchestrator.watch.plain import PlainWatcher
from tests.orchestrator.sweep.simulated import FlatEstimates
from workers.cell import Cell


def sweep_on_ray(
    asked: SweepSpec,
    actor: type,
    options: FleetOptions,
    journal: Journal,
    *,
    address: str | None = None,
    cpus: int | None = None,
    cells: list[Cell] | None = None,
    estimates: FlatEstimates | None = None,
    watcher: Watcher | None = None,
) -> Sweep:
    """Run it to its end; a line per event on stdout, unless another watcher is named. `cells`: others than planned."""
    with connected(address, cpus=cpus):
        fleet = RayFleet(options, actor)
        sweep = Sweep(
            spec=asked,
            cells=expand(asked) if cells is None else cells,
            questions=[],
            run_id=options.run_id,
            fleet=fleet,
            journal=journal,
            history=[],
            estimates=estimates or FlatEstimates(),
            watcher=watcher or PlainWatcher(sys.stdout),
        )
        sweep.run()
        fleet.close()
    return sweep
