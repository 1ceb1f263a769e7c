"""The driver of the partition test: `python -m tests.orchestrator.fleet.partition_driver ADDRESS OUT HOLD`.

Cells sleep half a second each while there is a file HOLD; a line per event on stdout.
"""

import sys

from orchestrator.fleet.ray_fleet import FleetOptions
from orchestrator.journal.journal import Journal
from tests.orchestrator.fleet.actors import ScriptedActor
from tests.orchestrator.fleet.sweeping import sweep_on_ray
from tests.orchestrator.sweep.simulated import spec

CELLS = 120


def main(address: str, out: str, hold: str) -> None:
    asked = spec(modes=["baseline"], lengths=[100], repeats=CELLS, corpus=f"while:{hold}")
    options = FleetOptions(run_id="partition", refresh_s=1.0, suspect_node_s=5.0)
    sweep = sweep_on_ray(asked, ScriptedActor, options, Journal.open(out, writable=True), address=address)
    print(sweep.summary().sentence(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
