"""`oomline run`: a sweep from its file to its report. The exit status is the sweep's."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.answer_view import say_answer
from jobs.output import NeverFails, complain, say
from orchestrator.fleet.connect import ConnectError
from orchestrator.journal.errors import REFUSALS, LockLost, StoreError
from orchestrator.journal.folder import RunFolder, open_run
from orchestrator.journal.object_store import open_store
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from orchestrator.spec_error import SpecError
from orchestrator.sweep.run import run_sweep
from orchestrator.sweep.summary import Summary
from orchestrator.watch import DeviceJoined, Notice, SweepEvent, Watcher
from orchestrator.watch.live import LiveWatcher
from orchestrator.watch.plain import PlainWatcher
from orchestrator.watch.session_log import SessionLog
from workers.outcome import Outcome
from workers.units import duration_text

#: The folder in which Ray keeps what jobs bring.
_RAYS_COPIES = "working_dir_files"


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What a run is told besides its sweep. `address`: of a Ray cluster; `cpu_slots`: per node without a GPU; `retry`:
    outcomes on record that are tried again; `extend`: the sweep has more cells than the folder's; `stop`: set from another
    thread, it ends the sweep early."""

    address: str | None = None
    cpu_slots: int | None = None
    retry: Collection[Outcome] = frozenset()
    extend: bool = False
    stop: threading.Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended. `report`: where its report.md is; None with the reason in `no_report`. `kept`: results that the
    store did not take, and how to go on."""

    summary: Summary
    took_s: float
    report: str | None
    no_report: str = ""
    kept: str | None = None

    @property
    def exit_status(self) -> int:
        return self.summary.exit_status if self.report is not None and self.kept is None else 1


def run_command(
    spec: SweepSpec,
    out: str,
    *,
    address: str | None,
    cpu_slots: int | None,
    retry: Collection[Outcome] = frozenset(),
    extend: bool = False,
) -> int:
    """Run or resume `spec` in the run folder `out`, then render the report, and say so. Raises `SpecError`."""
    display = LiveWatcher() if sys.stdout.isatty() else PlainWatcher(sys.stdout)
    how = How(address=address, cpu_slots=cpu_slots, retry=retry, extend=extend)
    try:
        ended = run_in_folder(spec, out, NeverFails(display), how)
    except KeyboardInterrupt:
        complain(f"stopped; no report: `oomline report {out}` writes it, the same command goes on")
        return 1
    say(f"took {duration_text(ended.took_s)}")
    for note in ended.summary.notes():
        say(f"note: {note}")
    if ended.report is None:
        say(f"no report: {ended.no_report}; `oomline report {out}` writes it later")
    else:
        say_answer(open_store(out))
        say(f"report: {ended.report}")
    if ended.kept is not None:
        say(f"note: {ended.kept}")
    return ended.exit_status


def run_in_folder(spec: SweepSpec, out: str, watcher: Watcher, how: How) -> RunEnd:
    """Run or resume `spec` in the run folder `out`, then render the report. Raises `SpecError`."""
    _refuse_folder_of_a_job(out)
    try:
        folder = open_run(out, spec, extend=how.extend)
    except REFUSALS as error:
        raise SpecError(f"--out {out}: {str(error).removeprefix(f'{out}: ')}") from None
    with folder:
        log = SessionLog(folder.store, len(folder.manifest.sessions))
        kept: str | None = None
        try:
            ended = _run(spec, out, folder, _All((watcher, NeverFails(log))), how)
        except BaseException as error:
            log.say("interrupted" if isinstance(error, KeyboardInterrupt) else traceback.format_exc())
            raise
        else:
            log.say(f"took {duration_text(ended.took_s)}; report: {ended.report or ended.no_report}")
        finally:
            kept = folder.journal.send_kept()
            log.close()
    return replace(ended, kept=kept)


def _refuse_folder_of_a_job(out: str) -> None:
    """Ray may delete the copy of the working directory that a submitted job runs in, once the job has ended."""
    here = Path.cwd()
    if _RAYS_COPIES in here.parts and "://" not in out and here in Path(os.path.abspath(out)).parents:
        raise SpecError(
            f"--out {out}: this job runs in a copy of its working directory that Ray may delete ({here}): give an absolute "
            "path on shared storage, or an object store such as s3://bucket/run"
        )


def _run(spec: SweepSpec, out: str, folder: RunFolder, watcher: Watcher, how: How) -> RunEnd:
    started = time.monotonic()
    try:
        folder.plan(cells=len(expand(spec)))
        for change in folder.manifest.other_sessions():
            watcher.see(Notice(f"not the same code and packages as now: {change}"))
        summary = run_sweep(
            spec,
            folder,
            _All((watcher, _Manifest(folder))),
            address=how.address,
            cpu_slots=how.cpu_slots,
            retry=how.retry,
            stop=how.stop,
        )
    except ConnectError as error:
        _finish(folder, "failed", str(error))
        raise SpecError(str(error)) from None
    except KeyboardInterrupt:
        _finish(folder, "stopped", "interrupted twice: what ran then has no outcome")
        raise
    except BaseException as error:
        _finish(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    took_s = time.monotonic() - started
    from orchestrator.report import render  # its pictures need a library of a second

    state = "stopped" if summary.stopped or summary.open else "finished"
    try:
        folder.finish(state, "; ".join(summary.notes()))
        report = render(out)
    except (StoreError, LockLost, OSError) as error:
        # What ended the sweep (a full disk, say) may be in the way here too; the journal has all that the report has.
        return RunEnd(summary=summary, took_s=took_s, report=None, no_report=str(error))
    return RunEnd(summary=summary, took_s=took_s, report=report)


def _finish(folder: RunFolder, state: str, note: str) -> None:
    """Says so in the manifest where that can be written: what ended the run may be in the way."""
    with contextlib.suppress(StoreError, LockLost, OSError):
        folder.finish(state, note)


@dataclass(frozen=True)
class _All:
    watchers: Sequence[Watcher]

    def see(self, event: SweepEvent) -> None:
        for watcher in self.watchers:
            watcher.see(event)

    def close(self) -> None:
        """Of the session's log too; what is said later is written by whoever closes it again."""
        for watcher in self.watchers:
            watcher.close()


@dataclass
class _Manifest:
    """Keeps the devices that joined in the folder's manifest."""

    folder: RunFolder
    seen: set[str] = field(default_factory=set)

    def see(self, event: SweepEvent) -> None:
        if isinstance(event, DeviceJoined) and event.device.uuid not in self.seen:
            self.seen.add(event.device.uuid)
            # Every attempt on record names its device too; a folder that takes no more ends the sweep there.
            with contextlib.suppress(StoreError, LockLost, OSError):
                self.folder.devices([event.device])

    def close(self) -> None:
        pass
