"""Runs a sweep from its journal to its end, on the Ray that is found or started."""

import contextlib
import dataclasses
import importlib
import os
import secrets
import threading
from collections.abc import Collection

from orchestrator.boundary.question import questions
from orchestrator.fleet.connect import connected
from orchestrator.fleet.metrics import MeteredWatcher
from orchestrator.fleet.ray_fleet import RayFleet
from orchestrator.fleet.slot_entry import FleetOptions
from orchestrator.journal.folder import RunFolder
from orchestrator.plan import expand
from orchestrator.predict.rehearsed.background import background
from orchestrator.spec import SweepSpec
from orchestrator.sweep.loop import JournalBroken, Sweep
from orchestrator.sweep.stop import stop_signals
from orchestrator.sweep.summary import Summary
from orchestrator.sweep.work.estimates import Predictions
from orchestrator.watch import Notice, SweepEnded, Watcher
from workers.actor import DeviceActor
from workers.outcome import Outcome

#: Set by Ray in the process that a submitted job runs.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def run_sweep(
    spec: SweepSpec,
    folder: RunFolder,
    watcher: Watcher,
    *,
    address: str | None = None,
    cpu_slots: int | None = None,
    retry: Collection[Outcome] = frozenset(),
    stop: threading.Event | None = None,
    actor_class: type = DeviceActor,
) -> Summary:
    """Run everything that the folder's journal does not have yet. The caller has opened the folder and holds its lock.

    `address`: of a Ray cluster; default RAY_ADDRESS, else Ray is started here. `cpu_slots`: per node, where there is
    no GPU. `retry`: outcomes on record that are tried again. `stop`: set from another thread. Ends early, with what was finished on record, on SIGTERM,
    SIGINT, SIGHUP (on the main thread), `stop`, a full disk, or when no device is left.
    Raises `ConnectError` when no Ray answers at the address.
    """
    metered = MeteredWatcher(watcher, folder.run_id)
    # Shapes of models need it as soon as a device is there; Ray takes seconds to start, most of which it waits.
    importing = threading.Thread(target=_import_models, name="import-models")
    importing.start()
    if _JOB in os.environ:
        # torch and transformers ask for the current folder when they are imported. Ray replaces a job's folder as its actors start, where
        # several nodes share a machine.
        importing.join()
    try:
        with (
            stop_signals() as signals,
            connected(address, cpus=cpu_slots),
            background(_processes()) as rehearsing,
        ):
            signals.listen()
            # Actor names must be unique for as long as Ray remembers the dead; a resumed run keeps its id.
            run_id = f"{folder.run_id}-{secrets.token_hex(2)}"
            options = FleetOptions(
                run_id=run_id, kinds=spec.devices, cpu_slots=cpu_slots, max_devices=spec.max_devices,
                of_a_cell=max(spec.devices_per_cell),
            )  # fmt: skip
            with contextlib.closing(RayFleet(options, actor_class)) as fleet:
                sweep = Sweep(
                    spec=spec,
                    cells=expand(spec),
                    questions=questions(spec),
                    run_id=folder.run_id,
                    fleet=fleet,
                    journal=folder.journal,
                    history=folder.journal.attempts(),
                    estimates=Predictions(rehearsing),
                    watcher=metered,
                    retry=retry,
                    stop=lambda: signals.requested() or _asked(stop) or folder.lost,
                )
                return conduct(sweep, metered)
    finally:
        watcher.close()


def _asked(stop: threading.Event | None) -> str | None:
    return "stopped by its caller" if stop is not None and stop.is_set() else None


def _import_models() -> None:
    with contextlib.suppress(Exception):  # told by whoever imports it next
        importlib.import_module("workers.models.load")


def _processes() -> int:
    """Processes that predict while the loop runs. They start when a device is there for which something is rehearsed."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2))


def conduct(sweep: Sweep, watcher: Watcher) -> Summary:
    """Run the loop to its end. A journal that takes no more ends it early."""
    broken: str | None = None
    try:
        sweep.run()
    except JournalBroken as error:
        broken = str(error)
        watcher.see(Notice(broken))
    summary = sweep.summary()
    if broken is not None:
        summary = dataclasses.replace(summary, troubles=(*summary.troubles, broken), stopped=True)
    watcher.see(SweepEnded(summary.exit_status, summary.sentence()))
    return summary
