"""The driver of the test of Ray's memory monitor: `python -m tests.orchestrator.fleet.memory_driver OUT`.

Two slots of a Ray of its own, which is told when to act by its environment. One cell takes `HOG_GIB`, the others sleep.
"""

import dataclasses
import sys

from orchestrator.fleet.connect import connected
from orchestrator.fleet.ray_fleet import FleetOptions, RayFleet
from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from orchestrator.sweep.loop import Sweep
from orchestrator.watch.plain import PlainWatcher
from tests.orchestrator.fleet.actors import ScriptedActor
from tests.orchestrator.sweep.simulated import FlatEstimates, spec

CELLS = 6
HOG_GIB = 6


def main(out: str) -> None:
    asked = spec(modes=["baseline"], lengths=[100], repeats=CELLS, corpus="sleep:1")
    hog, *others = expand(asked)
    with connected(None, cpus=2):
        fleet = RayFleet(FleetOptions(run_id="memory", refresh_s=1.0, start_backoff_s=0.1), ScriptedActor)
        sweep = Sweep(
            spec=asked,
            cells=[dataclasses.replace(hog, corpus=f"grow:{HOG_GIB}"), *others],
            questions=[],
            run_id="memory",
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
