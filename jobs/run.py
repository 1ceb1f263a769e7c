"""`oomline run`: a sweep from its file to its report. The exit status is the sweep's."""

import contextlib
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from jobs.answer_view import say_answer
from jobs.output import NeverFails, say
from orchestrator.fleet.connect import ConnectError
from orchestrator.journal.errors import REFUSALS, LockLost, StoreError
from orchestrator.journal.folder import RunFolder, open_run
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from orchestrator.spec_error import SpecError
from orchestrator.sweep.run import run_sweep
from orchestrator.watch import DeviceJoined, SweepEvent, Watcher
from orchestrator.watch.live import LiveWatcher
from orchestrator.watch.plain import PlainWatcher
from workers.outcome import Outcome
from workers.units import duration_text


def run_command(
    spec: SweepSpec,
    out: str,
    *,
    address: str | None,
    cpu_slots: int | None,
    retry: Collection[Outcome] = frozenset(),
    extend: bool = False,
) -> int:
    """Run or resume `spec` in the run folder `out`, then render the report. Raises `SpecError`."""
    try:
        folder = open_run(out, spec, extend=extend)
    except REFUSALS as error:
        raise SpecError(f"--out {out}: {str(error).removeprefix(f'{out}: ')}") from None
    with folder:
        try:
            status = _run(spec, out, folder, address=address, cpu_slots=cpu_slots, retry=retry)
        finally:
            kept = folder.journal.send_kept()
            if kept is not None:
                say(f"note: {kept}")
    return status if kept is None else 1


def _run(
    spec: SweepSpec,
    out: str,
    folder: RunFolder,
    *,
    address: str | None,
    cpu_slots: int | None,
    retry: Collection[Outcome],
) -> int:
    display = LiveWatcher() if sys.stdout.isatty() else PlainWatcher(sys.stdout)
    watcher = _Both(NeverFails(display), _Manifest(folder))
    started = time.monotonic()
    try:
        folder.plan(cells=len(expand(spec)))
        summary = run_sweep(spec, folder, watcher, address=address, cpu_slots=cpu_slots, retry=retry)
    except ConnectError as error:
        _finish(folder, "failed", str(error))
        raise SpecError(str(error)) from None
    except BaseException as error:
        _finish(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    say(f"took {duration_text(time.monotonic() - started)}")
    for note in summary.notes():
        say(f"note: {note}")
    from orchestrator.report import render  # its pictures need a library of a second

    state = "stopped" if summary.stopped or summary.open else "finished"
    try:
        folder.finish(state, "; ".join(summary.notes()))
        report = render(out)
        say_answer(folder.store)
        say(f"report: {report}")
    except (StoreError, LockLost, OSError) as error:
        # What ended the sweep (a full disk, say) may be in the way here too; the journal has all that the report has.
        say(f"no report: {error}; `oomline report {out}` writes it later")
        return 1
    return summary.exit_status


def _finish(folder: RunFolder, state: str, note: str) -> None:
    """Says so in the manifest where that can be written: what ended the run may be in the way."""
    with contextlib.suppress(StoreError, LockLost, OSError):
        folder.finish(state, note)


@dataclass(frozen=True)
class _Both:
    first: Watcher
    second: Watcher

    def see(self, event: SweepEvent) -> None:
        self.first.see(event)
        self.second.see(event)

    def close(self) -> None:
        self.first.close()
        self.second.close()


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
