"""A sweep from Python: read, run, open again. Nothing is printed; what goes on is told by events."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.api.recorded import Run
from jobs.output import NeverFails
from jobs.sweep_files import find
from orchestrator.journal.errors import REFUSALS
from orchestrator.journal.folder import read_run
from orchestrator.local_files import resolve_paths
from orchestrator.spec import SweepSpec, parse_spec, read_spec
from orchestrator.spec_error import SpecError
from orchestrator.watch import SweepEvent
from workers.outcome import Outcome

#: A sweep as a person has it: a file or the name of one that comes along, its keys as a dictionary, or what was read.
Sweep = SweepSpec | Mapping[str, Any] | str | Path


def load_spec(spec: Sweep, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep: a path, the name of one that comes along (`demo`), the keys of one as a dictionary, or a `SweepSpec`.

    `overrides`: `key.path=yaml`, as `--set` of the command line; of a file only. Relative paths of models and of the
    corpus are looked for beside the file, then in the current folder. Raises `SpecError`: a line for each fault.
    """
    if isinstance(spec, str | Path):
        file = find(Path(spec))
        return resolve_paths(read_spec(file, overrides), file.parent)
    if overrides:
        raise SpecError(f"overrides {list(overrides)}: of a sweep file only; change the dictionary instead")
    if isinstance(spec, SweepSpec):
        return spec
    return resolve_paths(parse_spec({**spec}), Path.cwd())


def run(
    spec: Sweep,
    out: str | Path | None = None,
    on_event: Callable[[SweepEvent], None] | None = None,
    *,
    address: str | None = None,
    cpu_slots: int | None = None,
    retry: Collection[str] = (),
    extend: bool = False,
    stop: threading.Event | None = None,
) -> Run:
    """Run a sweep, or go on with the one in `out`, and write its report. Returns when it has ended.

    `out`: the run folder, a path or URL; default `runs/NAME`. `on_event` gets every `SweepEvent`, in the thread that called
    `run`: return within milliseconds; an exception of its own ends the events, not the sweep. `address`: of a Ray cluster.
    `cpu_slots`: where there is no GPU. `retry`: outcomes on record that are tried again. `extend`: the sweep has more cells
    than the folder's. `stop`: set it from another thread to end the sweep early, with what was finished on record.

    A Ray that this process is connected to is joined and left as it is; otherwise one is found or started, and left at the
    end. A sweep with nothing left to do needs none. On the main thread SIGINT, SIGTERM and SIGHUP stop the sweep.
    Raises `SpecError`: a wrong sweep, no Ray at the address, a folder that is in use or holds another sweep.
    """
    from jobs.finished import finished_before
    from jobs.run import How, run_in_folder
    from orchestrator.preflight import refuse_bad_input

    sweep = load_spec(spec)
    folder = str(out if out is not None else f"runs/{sweep.name}")
    outcomes = {_outcome(name) for name in retry}
    if not outcomes and not extend and (summary := finished_before(sweep, folder, address)) is not None:
        return Run(folder, exit_status=summary.exit_status)
    refuse_bad_input(sweep)
    asked = How(address=address, cpu_slots=cpu_slots, retry=outcomes, extend=extend, stop=stop)
    ended = run_in_folder(sweep, folder, NeverFails(_Listener(on_event)), asked)
    return Run(folder, exit_status=ended.exit_status)


def open_run(folder: str | Path) -> Run:
    """Open a run folder, a path or URL, to read; also while a driver works on it. Raises `SpecError` where there is none."""
    try:
        read_run(folder)
    except REFUSALS as error:
        raise SpecError(str(error)) from None
    return Run(str(folder))


def _outcome(name: str) -> Outcome:
    try:
        return Outcome(name)
    except ValueError:
        raise SpecError(f"retry: unknown outcome {name!r}; there are {', '.join(Outcome)}") from None


@dataclass(frozen=True, slots=True)
class _Listener:
    """A function as a watcher."""

    on_event: Callable[[SweepEvent], None] | None

    def see(self, event: SweepEvent) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def close(self) -> None:
        pass
