"""Shows a sweep on a terminal: a row per device, the totals below, finished cells above."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.names import Names
from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    Notice,
    SweepEnded,
    SweepEvent,
    SweepStarted,
    Tick,
)
from orchestrator.watch.formats import attempt_words, cell_words, device_words, one_line, tokens_words, totals
from workers.attempt import Device
from workers.cell import Cell
from workers.outcome import Outcome
from workers.progress import Progress
from workers.units import GiB, MiB, duration_text

_COLOURS = {Outcome.OK: "green", Outcome.PRUNED: "cyan", Outcome.QUARANTINED: "bold red"}
_BAR, _WIDE = (
    8,
    100,
)  # below this width there is no room for bars, nor for more of a cell than mode and tokens
_NARROW = 12  # of a device's name, where there is no room for all of it
_ROWS_FOR_TOTALS = 6
_REDRAW_S = 0.25


@dataclass
class _Row:
    device: Device
    cell: Cell | None = None
    began: float = 0.0
    progress: Progress | None = None


class LiveWatcher:
    """Draws on `console` (default: the terminal) until `close`."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console or Console(), clock
        self._rows: dict[str, _Row] = {}
        self._tick: Tick | None = None
        self._title = ""
        self._names = Names.of_refs([])
        self._drawn = 0.0
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def see(self, event: SweepEvent) -> None:
        match event:
            case SweepStarted():
                self._names = Names.of_refs(event.models)
                searches = f", {event.searches} boundary searches" if event.searches else ""
                reused = f", {event.reused} outcomes reused" if event.reused else ""
                self._title = f"{event.name}: {event.cells} cells{searches}{reused}"
            case DeviceJoined():
                self._rows[event.slot] = _Row(event.device)
                self._say(f"{event.slot} joined: {device_words(event.device)}", "dim")
            case DeviceLost():
                self._rows.pop(event.slot, None)
                self._say(f"{event.slot} left{' for good' if event.for_good else ''}: {event.reason}", "red")
            case CellStarted():
                self._rows[event.slot] = _Row(event.device, event.cell, self._clock())
            case CellProgressed() if event.slot in self._rows:
                self._rows[event.slot].progress = event.progress
            case CellFinished():
                self._finished(event)
            case Notice():
                self._say(event.text, "yellow")
            case Tick():
                self._tick = event
            case SweepEnded():
                self._say(event.text, "bold")
        if self._clock() - self._drawn >= _REDRAW_S:
            self._drawn = self._clock()
            self._live.update(self.view(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def view(self) -> RenderableType:
        """What is on the screen now: busy devices first, as many as fit."""
        table = Table(
            title=Text(self._title, style="bold"), title_justify="left", expand=True, box=None, pad_edge=False
        )
        table.add_column("device", max_width=24, no_wrap=True, overflow="ellipsis", header_style="dim")
        table.add_column("mode", no_wrap=True, header_style="dim")
        table.add_column("cell", ratio=1, no_wrap=True, overflow="ellipsis", header_style="dim")
        for name in ("tokens", "memory"):
            table.add_column(name, no_wrap=True, header_style="dim")
        for name in ("tok/s", "time"):
            table.add_column(name, justify="right", no_wrap=True, header_style="dim")
        fit = max(self._console.height - _ROWS_FOR_TOTALS, 3)
        rows = sorted(self._rows.items(), key=lambda row: (row[1].cell is None, row[0]))
        for slot, row in rows[:fit]:
            self._add(table, slot, row)
        parts: list[RenderableType] = [table if rows else Text(self._title, style="bold")]
        if len(rows) > fit:
            parts.append(Text(f"and {len(rows) - fit} more devices", style="dim"))
        if self._tick is not None:
            parts.append(Text(f"{duration_text(self._tick.elapsed_s)}: {totals(self._tick)}"))
        return Group(*parts)

    @property
    def _wide(self) -> bool:
        return self._console.width >= _WIDE

    def _add(self, table: Table, slot: str, row: _Row) -> None:
        if row.cell is None:
            table.add_row(self._device(slot), Text("idle", style="dim"))
            return
        progress = row.progress
        done = progress.new_tokens if progress else 0
        used = progress.device_used_bytes if progress else None
        limit = row.cell.budget or row.device.total_bytes
        bar = _BAR if self._wide else 0
        speed = f"{progress.tokens_per_s:.1f}" if progress and progress.tokens_per_s else ""
        # Where there is nothing to count yet, the phase: it must survive a narrow terminal, the cell's name need not.
        begun = str(progress.phase) if progress else "starting"
        table.add_row(
            self._device(slot),
            row.cell.mode,
            Text(cell_words(row.cell, self._names, mode=False) if self._wide else tokens_words(row.cell)),
            _bar(done, row.cell.length, f"{done}/{row.cell.length}" if done else begun, bar),
            _bar(used or 0, limit, _share(used, limit), bar, full="red"),
            speed,
            _clock_words(self._clock() - row.began),
        )

    def _device(self, slot: str) -> Text:
        """The end of its name tells it from its neighbours."""
        return Text(slot if self._wide or len(slot) <= _NARROW else f"…{slot[1 - _NARROW :]}")

    def _finished(self, event: CellFinished) -> None:
        if event.slot in self._rows:
            row = self._rows[event.slot]
            row.cell = row.progress = None
        outcome = event.attempt.outcome
        # Yellow: a result, and not `ok`: out of memory, context limit, timeout.
        colour = _COLOURS.get(outcome, "red" if outcome.is_unfinished else "yellow")
        self._say(attempt_words(event.attempt, self._names) + ("" if event.final else " · again"), colour)

    def _say(self, text: str, style: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {one_line(text)}"
        # Wrapped, not cut: how to go on stands at the end.
        self._live.console.print(Text(line[:500], style=style))


def _bar(done: float, total: float, label: str, width: int, full: str = "green") -> RenderableType:
    if not width:
        return Text(label)
    near = total > 0 and done / total > 0.9
    bar = ProgressBar(
        total=max(total, 1),
        completed=done,
        width=width,
        complete_style=full if near else "blue",
        finished_style=full,
    )
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width)
    grid.add_column(no_wrap=True)
    grid.add_row(bar, Text(label, style="dim"))
    return grid


def _clock_words(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def _share(used: int | None, limit: int) -> str:
    """Both in the limit's unit: a budget of a laptop is tens of MiB."""
    unit, name, digits = (GiB, "GiB", 1) if limit >= GiB else (MiB, "MiB", 0)
    return f"{'-' if used is None else f'{used / unit:.{digits}f}'}/{limit / unit:.{digits}f} {name}"
