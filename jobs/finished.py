"""The same command on a finished sweep: its answer at once, from the folder, without Ray and without a model's config."""

import os

from jobs.answer_view import say_answer
from jobs.output import say
from orchestrator.answer import read_answer
from orchestrator.journal.errors import REFUSALS
from orchestrator.journal.folder import RecordedRun, read_run
from orchestrator.local_files import fingerprints
from orchestrator.spec import SweepSpec
from orchestrator.status import count_cells
from orchestrator.sweep.summary import Summary
from workers.meters.nvml import NoDevice, list_uuids


def answered_before(spec: SweepSpec, out: str, address: str | None) -> bool:
    """Say the answer of a folder in which nothing of `spec` is left to do, and whether this is one."""
    summary = finished_before(spec, out, address)
    if summary is None:
        return False
    store = read_run(out).store
    say(summary.sentence())
    say_answer(store)
    say(f"report: {store.url.rstrip('/')}/report.md")
    return True


def finished_before(spec: SweepSpec, out: str, address: str | None) -> Summary | None:
    """Return what a run of `spec` would end with, where nothing of it is left to do in `out`; else None.

    Nothing is left when the last session finished, every end is one that a sweep looks for, the sweep file and the files
    that it names are the same, and every device of this machine was there. A cluster is always asked.
    """
    if (address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        return None
    try:
        run = read_run(out)
        if read_answer(run.store) is None or not _is_finished(run, spec):
            return None
        counts = count_cells(spec, run.journal.history())
    except REFUSALS:
        return None  # told by the run itself
    if counts.completed != counts.planned or not all(outcome.is_expected for outcome in counts.outcomes):
        return None
    reused = sum(counts.outcomes.values())
    run_id = "" if run.manifest is None else run.manifest.run_id
    return Summary(run_id=run_id, computed=0, reused=reused, left=0, outcomes=counts.outcomes)


def _is_finished(run: RecordedRun, spec: SweepSpec) -> bool:
    manifest = run.manifest
    if manifest is None or manifest.state != "finished" or run.spec != spec:
        return False
    files = fingerprints(spec)
    if any(manifest.files.get(path, digest) != digest for path, digest in files.items()):
        return False
    return _knows_the_devices_here(run)


def _knows_the_devices_here(run: RecordedRun) -> bool:
    """A device that joined since is of another kind, perhaps, and its cells are to be run."""
    devices = () if run.manifest is None else run.manifest.devices
    try:
        here = set(list_uuids())
    except NoDevice:
        here = set()
    return here <= {device.uuid for device in devices} if here else any(d.kind == "cpu" for d in devices)
