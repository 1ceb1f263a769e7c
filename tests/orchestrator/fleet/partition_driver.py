"""The driver of the partition test: `python -m tests.orchestrator.fleet.partition_driver ADDRESS OUT HOLD`.

Cells sleep half a second each while there is a file HOLD; a line per event on stdout.
"""

import sys

from orchestrator.fleet.connect import connected
from orchestrator.fleet.ray_fleet import FleetOptions, RayFleet
from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from orchestrator.sweep.loop import Sweep
from orchestrator.watch.plain import PlainWatcher
from tests.orchestrator.fleet.actors import ScriptedActor
from tests.orchestrator.sweep.simulated import FlatEstimates, spec

CELLS = 120


def main(address: str, out: str, hold: str) -> None:
    asked = spec(modes=["baseline"], lengths=[100], repeats=CELLS, corpus=f"while:{hold}")
    with connected(address):
        fleet = RayFleet(FleetOptions(run_id="partition", refresh_s=1.0, suspect_node_s=5.0), ScriptedActor)
        sweep = Sweep(
            spec=asked,
            cells=expand(asked),
            questions=[],
            run_id="partition",
            fleet=fleet,
            journal=Journal.open(out, writable=True),
            history=[],
            estimates=FlatEstimates(),
            watcher=PlainWatcher(sys.stdout),
        )
        sweep.run()
        fleet.close()
    print(sweep.summary().sentence(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
