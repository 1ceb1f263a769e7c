"""A run folder from Python: its tables as Polars frames, its answer, its report."""

from __future__ import annotations

import contextlib
import json
import weakref
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.journal.folder import RecordedRun, read_run
from orchestrator.status import RunStatus, read_status

if TYPE_CHECKING:
    import polars as pl

    from orchestrator.answer import RunAnswer
    from orchestrator.spec import SweepSpec
    from orchestrator.tables.write import Tables

_DEVICE = (
    *("device_uuid", "device_kind", "node", "device_total_bytes", "device_reserve_bytes", "driver_version"),
    "per_process_memory_visible",
)


class Run:
    """A run folder. Frames are those of `tables/`, derived from the journal as it is when the first one is asked for;
    `refresh` reads it again. `exit_status`: as the command's, of the sweep that `run` has run; None where the folder was
    opened.

    Of a run folder in an object store, keep the `Run` for as long as a lazy frame of it is used: it holds the copy.
    """

    def __init__(self, folder: str, exit_status: int | None = None) -> None:
        self.folder, self.exit_status = folder, exit_status

    @property
    def spec(self) -> SweepSpec | None:
        """The sweep as it was resolved. None where the folder's spec.yaml cannot be read."""
        return self._recorded.spec

    @property
    def attempts(self) -> pl.DataFrame:
        """Every attempt at a cell: outcome, measurements, evidence."""
        return self._tables.attempts.drop("row")

    @property
    def summary(self) -> pl.DataFrame:
        """One row for each model, mode, setting and length: median speed with its interval, peak, outcome."""
        return self._tables.summary

    @property
    def boundaries(self) -> pl.DataFrame:
        """The bracket of each mode on each card, the prediction beside it."""
        from orchestrator.tables.boundaries import boundary_frame

        return boundary_frame(self._tables.boundaries)

    @property
    def quality(self) -> pl.DataFrame:
        """Loss by position, of `workload: score`."""
        return self._tables.quality

    @property
    def samples(self) -> pl.LazyFrame:
        """Memory over time, every change of a meter's value."""
        from orchestrator.tables.attempts import samples

        return samples(self._tables.view.rows)

    @property
    def steps(self) -> pl.LazyFrame:
        """Checkpoints along the new tokens."""
        from orchestrator.tables.attempts import steps

        return steps(self._tables.view.rows)

    @property
    def device_peaks(self) -> pl.DataFrame:
        """Each device of every attempt at a cell on several: its peaks, and how its process ended."""
        from orchestrator.tables.attempts import devices

        return devices(self._tables.view.rows).collect()

    @property
    def retrieval(self) -> pl.DataFrame:
        """Needles found, by length and depth, of `workload: retrieve`."""
        return self._tables.retrieval

    @property
    def effective_length(self) -> pl.DataFrame:
        """The longest length at which enough needles are found, of `workload: retrieve`."""
        return self._tables.effective_length

    @property
    def devices(self) -> pl.DataFrame:
        """The devices that ran cells, with the number of attempts on each."""
        import polars as pl

        ran = self._tables.attempts.drop_nulls("device_uuid")
        return ran.group_by(*_DEVICE, maintain_order=True).agg(attempts=pl.len())

    @cached_property
    def answer(self) -> RunAnswer:
        """The first sentences of the report and its first table, from the journal as it is."""
        from orchestrator.report.noisy_machine import noisy_machine
        from orchestrator.report.sections.answer import as_data
        from orchestrator.report.sections.weighing import Evidence
        from orchestrator.report.setting import names_of, settings

        tables = self._tables
        return as_data(
            settings(tables),
            Evidence.of(tables, self.spec),
            names_of(tables.attempts),
            noisy_machine(tables.attempts),
        )

    @property
    def status(self) -> RunStatus:
        """Where the run stands now, as `oomline status` tells it."""
        return read_status(self.folder)

    def report(self) -> str:
        """Write tables, pictures and report again. Return the address of report.html."""
        from jobs.answer_view import page_of
        from orchestrator.report import render

        render(self.folder)
        return page_of(self._recorded.store)

    def to_json(self) -> str:
        """Return the run as JSON, of the schema in `docs/run.schema.json`: status, sweep, answer, summary, boundaries."""
        from jobs.api.run_json import run_as_json

        return json.dumps(
            run_as_json(self._recorded, self._tables, self.status, self.answer), indent=1, allow_nan=False
        )

    def refresh(self) -> None:
        """Forget what was read: the journal may have grown since."""
        for name in ("_recorded", "_tables", "answer"):
            self.__dict__.pop(name, None)

    @cached_property
    def _recorded(self) -> RecordedRun:
        return read_run(self.folder)

    @cached_property
    def _tables(self) -> Tables:
        from orchestrator.tables.write import derive

        opened = contextlib.ExitStack()
        weakref.finalize(self, opened.close)
        return opened.enter_context(derive(self._recorded))

    def __repr__(self) -> str:
        return f"Run({self.folder!r})"

    def _repr_markdown_(self) -> str:
        """What a notebook shows: the answer."""
        return "\n\n".join(self.answer.sentences) or f"`{self.folder}`: no measured run has ended yet"
