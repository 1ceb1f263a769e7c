"""The driver of the test of Ray's memory monitor: `python -m tests.orchestrator.fleet.memory_driver OUT`.

Two slots of a Ray of its own, which is told when to act by its environment. One cell takes `HOG_GIB`, the others sleep.
"""

import dataclasses
import sys

from orchestrator.fleet.ray_fleet import FleetOptions
from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from tests.orchestrator.fleet.actors import ScriptedActor
from tests.orchestrator.fleet.sweeping import sweep_on_ray
from tests.orchestrator.sweep.simulated import spec

CELLS = 6
HOG_GIB = 6


def main(out: str) -> None:
    asked = spec(modes=["baseline"], lengths=[100], repeats=CELLS, corpus="sleep:1")
    hog, *others = expand(asked)
    sweep = sweep_on_ray(
        asked,
        ScriptedActor,
        FleetOptions(run_id="memory", cpu_slots=2, refresh_s=1.0, start_backoff_s=0.1),
        Journal.open(out, writable=True),
        cpus=2,
        cells=[dataclasses.replace(hog, corpus=f"grow:{HOG_GIB}"), *others],
    )
    print(sweep.summary().sentence(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
