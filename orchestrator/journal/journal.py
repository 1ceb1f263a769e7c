"""The journal: what was appended is durable; what cannot be trusted is set aside; twice is once."""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import polars as pl

from orchestrator.journal.lock import Lock
from orchestrator.journal.parts import BadPart, Part, check, encode, scan, sequence_of
from orchestrator.journal.record import LIGHT_SCHEMA, Record, to_attempts, to_frame
from orchestrator.journal.store import Store, StoreFull, open_store
from workers.attempt import Attempt

_log = logging.getLogger(__name__)
FOLDER, ASIDE = "journal", "journal/set-aside"


class JournalFull(Exception):
    """No room for another part. Everything appended before is on record and readable."""


#: How an attempt ended and where, without what it measured.
_HISTORY = (
    *("cell_json", "lease_id", "attempt", "outcome", "phase", "started_at", "duration_s"),
    *("device_kind", "device_uuid", "node", "device_total_bytes", "device_reserve_bytes", "driver_version"),
    "per_process_memory_visible",
)


@dataclass(frozen=True, slots=True)
class View:
    """Each attempt once, in the order of appending. Valid while the context that gave it lasts.

    `light`: in memory, the columns asked for and `row`; `rows`: on disk, `SCHEMA` and `row`.
    `duplicates`: attempts of which an equal one came earlier (the same lease, or the same attempt at the same
    cell on the same kind of device, as when the result of a lost node turns up late): in no table but their own.
    """

    light: pl.DataFrame
    rows: pl.LazyFrame
    duplicates: pl.DataFrame
    _parts: Mapping[int, Part]  # by the row that each begins with

    def beside(self, chosen: Sequence[int]) -> pl.LazyFrame:
        """`rows`, but only of the parts that hold the chosen ones: of a large journal most stay closed."""
        starts = list(self._by_part(chosen))
        rows = [start + index for start in starts for index in range(self._parts[start].rows)]
        numbers = pl.LazyFrame({"row": rows}, schema={"row": self.light.schema["row"]}).with_row_index("at")
        opened = scan([self._parts[start] for start in starts]).with_row_index("at")
        return opened.join(numbers, on="at", maintain_order="left").drop("at")

    def whole(self, chosen: Sequence[int]) -> dict[int, Attempt]:
        """The attempts of these rows with all their series. Only the parts that hold them are read."""
        found: dict[int, Attempt] = {}
        for start, rows in self._by_part(chosen).items():
            frame = scan([self._parts[start]]).collect()[[row - start for row in rows]]
            found |= zip(rows, to_attempts(frame), strict=True)
        return found

    def history(self) -> list[Attempt]:
        """How every attempt ended and where, without what it measured."""
        return to_attempts(self.light.select(_HISTORY))

    def _by_part(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        """The chosen rows in ascending order, by the row that their part begins with."""
        starts = sorted(self._parts)
        wanted: dict[int, list[int]] = {}
        for row in sorted(set(chosen)):
            wanted.setdefault(starts[bisect_right(starts, row) - 1], []).append(row)
        return wanted


_IDENTITY = (
    *(
        "run_id",
        "lease_id",
        "cell_id",
        "device_kind",
        "attempt",
        "outcome",
        "device_uuid",
        "node",
        "started_at",
    ),
)


class Journal:
    """Open one with `Journal.open`; only the holder of the run folder's lock may append."""

    def __init__(self, store: Store, *, writable: bool, lock: Lock | None = None) -> None:
        self._store, self._writable, self._lock = store, writable, lock
        self._verdicts: dict[str, Part | BadPart] = {}
        self.set_aside = [BadPart(name, "set aside by an earlier run") for name in store.names(ASIDE)]
        """Parts that could not be trusted, found by this journal or by an earlier one."""
        if writable:
            store.clear_leftovers(FOLDER)
        names = [*store.names(FOLDER), *store.names(ASIDE)]
        self._next = 1 + max(map(sequence_of, names), default=0)

    @classmethod
    def open(cls, out: str | Path, *, writable: bool = True) -> "Journal":
        """The journal of the run folder `out` (a path or an object-store URL)."""
        return cls(open_store(out), writable=writable)

    def append(self, records: Sequence[Record]) -> None:
        """All of `records` become durable as one part, or none does.

        Raises `JournalFull`; `LockLost` when another driver took the folder over.
        """
        if not records:
            return
        if self._lock is not None:
            self._lock.check()
        name, data = encode(to_frame(records), self._next)
        try:
            self._store.write(f"{FOLDER}/{name}", data)
        except StoreFull as error:
            raise JournalFull(
                f"{error}; everything journalled before is kept: make room and run again"
            ) from error
        self._next += 1

    @contextmanager
    def view(self, columns: Sequence[str] = tuple(LIGHT_SCHEMA)) -> Iterator[View]:
        """What is on record, while the context lasts. Raises `SchemaTooNew`."""
        with self._store.local(FOLDER) as folder:
            yield _view(self._trusted(folder), columns)

    def history(self) -> list[Attempt]:
        """Every attempt on record once, oldest first, without what it measured."""
        with self.view(_HISTORY) as view:
            return view.history()

    def attempts(self) -> list[Attempt]:
        """Every attempt on record once, oldest first, without samples, steps, scores, ids and snapshot."""
        with self.view() as view:
            return to_attempts(view.light)

    def whole(self, lease_id: str) -> Attempt | None:
        """The attempt of one lease with all its series; None when there is none on record."""
        with self.view(_IDENTITY) as view:
            rows = view.light.filter(lease_id=lease_id)["row"].to_list()
            return next(iter(view.whole(rows).values()), None)

    def _trusted(self, folder: Path) -> list[Part]:
        """Each part is read and checked once in this journal's life."""
        parts: list[Part] = []
        for name in sorted(self._store.names(FOLDER), key=lambda name: (sequence_of(name), name)):
            if name not in self._verdicts:
                self._verdicts[name] = check(name, folder / name)
                self._judge(self._verdicts[name])
            verdict = self._verdicts[name]
            if isinstance(verdict, Part):
                parts.append(replace(verdict, path=folder / name))
        return parts

    def _judge(self, verdict: Part | BadPart) -> None:
        if isinstance(verdict, Part):
            return
        self.set_aside.append(verdict)
        _log.warning("%s: journal part %s is left out: %s", self._store.url, verdict.name, verdict.reason)
        if self._writable:
            self._store.move(f"{FOLDER}/{verdict.name}", f"{ASIDE}/{verdict.name}")


def _view(parts: Sequence[Part], columns: Sequence[str]) -> View:
    """The first of equal leases wins, then the first of equal attempts at a cell on a kind of device."""
    parts = sorted(parts, key=lambda part: part.version)  # as `scan` orders them
    rows = scan(parts).with_row_index("row")
    # One chunk per column: everything that follows would go through a chunk per part.
    light = rows.select("row", *dict.fromkeys((*_IDENTITY, *columns))).collect().rechunk()
    identity = light.select("row", *_IDENTITY)
    first = identity.unique("lease_id", keep="first", maintain_order=True).unique(
        ["cell_id", "device_kind", "attempt"], keep="first", maintain_order=True
    )
    late = identity.join(first, on="row", how="anti")
    if late.height:
        light = light.filter(pl.col("row").is_in(first["row"].implode()))
        rows = rows.filter(~pl.col("row").is_in(late["row"].implode()))
    starts = accumulate((part.rows for part in parts), initial=0)
    return View(light, rows, late.drop("row"), dict(zip(starts, parts, strict=False)))
