"""`run_sweep` on a simulated device, for tests of what the command does around it."""

from collections.abc import Callable, Collection

from orchestrator.journal.folder import RunFolder
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from orchestrator.sweep.loop import Sweep
from orchestrator.sweep.run import conduct
from orchestrator.sweep.summary import Summary
from orchestrator.watch import Watcher
from tests.orchestrator.sweep.simulated import (
    Fate,
    FlatEstimates,
    SimulatedClock,
    SimulatedFleet,
    World,
    device,
)
from workers.outcome import Outcome


def simulated_run(world: World = lambda lease, on: Fate(1)) -> Callable[..., Summary]:
    """In place of `run_sweep`: one device, on which cells fare as `world` says."""

    def run(
        spec: SweepSpec,
        folder: RunFolder,
        watcher: Watcher,
        *,
        retry: Collection[Outcome] = frozenset(),
        **_: object,
    ) -> Summary:
        clock = SimulatedClock()
        sweep = Sweep(
            spec=spec,
            cells=expand(spec),
            questions=[],
            run_id=folder.run_id,
            fleet=SimulatedFleet([device("a")], world, clock),
            journal=folder.journal,
            history=folder.journal.attempts(),
            estimates=FlatEstimates(),
            watcher=watcher,
            retry=retry,
            stop=lambda: folder.lost,
            clock=clock,
        )
        return conduct(sweep, watcher)

    return run
